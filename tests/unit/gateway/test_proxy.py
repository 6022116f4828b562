"""Requests over real sockets, against replicas that follow a script."""

from __future__ import annotations

import asyncio

import openai
import orjson
import pytest

from support.gateway import (
    EVENTS,
    JSON,
    Call,
    chat,
    client,
    gateway,
    raw_model,
    raw_pod,
    replica,
    until,
    verify,
)
from support.ports import refusing_port
from terrace.api.names import Key
from terrace_runtime.contract import MAX_REQUEST_IMAGE_BYTES


async def ok(call: Call) -> None:
    await call.answer(b'{"ok":true}')


async def die(call: Call) -> None:
    call.die()


async def test_the_replica_gets_the_body_and_the_client_the_answer_byte_for_byte() -> None:
    odd = b'{ "model" :\t"demo", "x": "\\u00e9 \xc3\xa9", "model2": 1e2 }\n'
    answer = b'{"odd":  "\xc3\xa9"}\r\n'

    async def script(call: Call) -> None:
        await call.answer(answer, status=201, content_type="application/json; odd=1")

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        got = await user.post(odd)
    assert there.calls[0].body == odd
    assert there.calls[0].line == "POST /v1/chat/completions HTTP/1.1"
    assert (got.status, got.body) == (201, answer)
    assert got.headers["content-type"] == "application/json; odd=1"


async def test_a_stream_arrives_event_by_event_byte_for_byte() -> None:
    events = [b": ping\n\n", b'data: {"a":1}\r\n\r\n', b"data: \xc3\xa9\n\n", b"data: [DONE]\n\n"]
    read = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head(EVENTS)
        for event in events:
            await call.chunk(event)
            await read.wait()  # the next event is written when the client has this one
            read.clear()
        await call.end()

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        await user.send(chat(stream=True))
        assert (await user.head()).headers["content-type"] == EVENTS
        for event in events:
            assert await user.chunk() == event
            read.set()
        assert await user.chunk() == b""


async def test_a_stream_cut_anywhere_comes_out_whole() -> None:
    whole = b'data: {"text":"one"}\n\n' * 3 + b"data: no end"

    async def script(call: Call) -> None:
        await call.head(EVENTS)
        for start in range(0, len(whole), 7):
            await call.chunk(whole[start : start + 7])
        await call.end()

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        assert (await user.post(chat(stream=True))).body == whole


async def test_errors_of_a_replica_pass_through_with_their_headers() -> None:
    async def script(call: Call) -> None:
        head = "HTTP/1.1 429 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\nserver: x\r\n\r\nbusy"
        call.writer.write(head.encode())

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        got = await user.post(chat())
    assert (got.status, got.headers["retry-after"], got.body) == (429, "7", b"busy")
    assert "server" not in got.headers


async def test_the_identity_says_priority_and_model_and_nothing_of_the_client() -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        await user.post(
            chat(),
            x_terrace_priority="batch",
            x_terrace_identity="forged",
            authorization="Bearer secret",
        )
        headers = there.calls[0].headers
    identity = verify(headers["x-terrace-identity"])
    assert (identity.model, identity.priority, identity.tenant) == ("default/demo", "batch", "")
    assert "authorization" not in headers
    assert "x-terrace-priority" not in headers


async def test_a_good_request_id_is_kept_on_the_whole_way_and_a_bad_one_replaced() -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        kept = await user.post(chat(), x_request_id="job-7")
        made = await user.post(chat(), x_request_id="a b")
        seen = [call.headers["x-request-id"] for call in there.calls]
    assert kept.headers["x-request-id"] == seen[0] == "job-7"
    assert made.headers["x-request-id"] == seen[1] != "a b"


async def test_an_unknown_model_is_a_404_that_lists_known_names() -> None:
    async with gateway() as running, client(running) as user:
        got = await user.post(chat("nope"))
    assert got.status == 404
    assert got.error["code"] == "model_not_found"
    assert got.error["param"] == "model"
    assert "demo" in got.error["message"]


async def test_a_model_that_is_not_ready_is_a_503_with_its_conditions_message() -> None:
    async with gateway() as running, client(running) as user:
        got = await user.post(chat())
    assert got.status == 503
    assert 0 < int(got.headers["retry-after"]) <= 120
    assert "the model file is being fetched" in got.error["message"]
    assert got.error["type"] == "service_unavailable_error"


async def test_before_the_first_list_nothing_is_said_to_be_missing() -> None:
    async with gateway(not_ready="pods: listing") as running, client(running) as user:
        for got in (await user.post(chat("nope")), await user.get("/v1/models")):
            assert got.status == 503
            assert "retry-after" in got.headers
        assert (await user.get("/readyz")).status == 503
        assert (await user.get("/healthz")).status == 200


async def test_broken_bodies_are_refused_and_the_connection_lives_on() -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        assert (await user.post(b"{")).error["code"] == "invalid_json"
        assert (await user.post(b"{}")).error["param"] == "model"
        assert (await user.post(chat(), x_terrace_priority="now")).status == 400
        assert (await user.post(chat())).status == 200
    assert len(there.calls) == 1


async def test_a_declared_body_over_the_limit_is_refused_unread() -> None:
    async with gateway(max_body_bytes=100) as running, client(running) as user:
        user.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 1000000000\r\n\r\n"
        )
        got = await user.answer()
    assert got.status == 413
    assert "100 bytes" in got.error["message"]


async def test_a_body_with_as_many_images_as_a_replica_takes_goes_through() -> None:
    images = "x" * (MAX_REQUEST_IMAGE_BYTES * 4 // 3)
    body = chat(messages=[{"role": "user", "content": images}])
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        assert (await user.post(body)).status == 200
    assert there.calls[0].body == body


async def test_a_body_that_grows_over_the_limit_is_refused() -> None:
    async with gateway(max_body_bytes=100) as running, client(running) as user:
        user.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            user.writer.write(b"32\r\n" + b"x" * 50 + b"\r\n")
        got = await user.answer()
    assert got.status == 413


async def test_a_chunked_body_reaches_the_replica_with_its_length() -> None:
    body = chat()
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        user.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        assert (await user.answer()).status == 200
    assert there.calls[0].body == body
    assert there.calls[0].headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in there.calls[0].headers


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with gateway(body_timeout_s=0.1) as running, client(running) as user:
        user.writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 9\r\n\r\n{")
        got = await user.answer()
    assert got.status == 408
    assert running.proxy.admission.requests == 0


async def test_one_request_too_many_is_a_429() -> None:
    held = asyncio.Event()

    async def script(call: Call) -> None:
        await held.wait()
        await call.answer(b"{}")

    async with (
        replica(script) as there,
        gateway(there, max_requests=1) as running,
        client(running) as first,
        client(running) as second,
    ):
        await first.send(chat())
        await until(lambda: len(there.calls) == 1)
        got = await second.post(chat())
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        held.set()
        assert (await first.answer()).status == 200
        assert (await second.post(chat())).status == 200


async def test_another_replica_is_tried_when_one_refuses_the_connection() -> None:
    # The clock stands still: what has failed stays skipped, however slow the machine is.
    async with replica(ok) as there, gateway(there, router_clock=lambda: 0.0) as running:
        with refusing_port() as refusing:
            running.registry.apply_pod(raw_pod("dead", port=refusing))
            for _ in range(20):
                async with client(running) as user:
                    assert (await user.post(chat())).status == 200
        metrics = (await running.app.metrics.render()).decode()
    assert len(there.calls) == 20
    failures = 'upstream_failures_total{model="default/demo",stage="connect"}'
    assert f"{failures} 1.0" in metrics  # once, then it is skipped


async def drain(call: Call) -> None:
    await call.answer(b'{"error":{"code":"draining"}}', status=503)


async def test_another_replica_is_tried_when_one_drains() -> None:
    async with replica(drain) as leaving, replica(ok) as there, gateway(leaving, there) as running:
        for _ in range(20):
            async with client(running) as user:
                assert (await user.post(chat())).status == 200
        ready = running.registry.endpoints(Key("default", "demo"))
        await until(lambda: not any(map(running.proxy.router.in_flight, ready)))
    assert len(ready) == 2
    assert len(there.calls) == 20
    assert leaving.calls


async def test_the_successor_of_a_replica_that_drains_is_tried() -> None:
    async with replica(ok) as successor:

        async def drain_and_tell(call: Call) -> None:
            running.registry.apply_pod(raw_pod("demo-cpu-1", port=successor.port))
            await drain(call)

        async with (
            replica(drain_and_tell) as leaving,
            gateway(leaving) as running,
            client(running) as user,
        ):
            assert (await user.post(chat())).status == 200


async def test_when_all_replicas_drain_the_last_one_s_answer_passes_through() -> None:
    async with replica(drain) as one, replica(drain) as two:
        async with gateway(one, two) as running, client(running) as user:
            got = await user.post(chat())
        assert (got.status, got.error["code"]) == (503, "draining")
        assert (len(one.calls), len(two.calls)) == (1, 1)


async def test_when_no_replica_can_be_reached_it_is_a_503_to_try_again() -> None:
    with refusing_port() as refusing:
        async with gateway() as running, client(running) as user:
            running.registry.apply_pod(raw_pod(port=refusing))
            got = await user.post(chat())
    assert (got.status, got.error["code"]) == (503, "model_unreachable")
    assert "retry-after" in got.headers


async def test_an_address_that_does_not_answer_is_left_within_the_connect_timeout() -> None:
    async with (
        replica(ok) as there,
        gateway(there, connect_timeout_s=0.2) as running,
        client(running) as user,
    ):
        running.registry.remove_pod(raw_pod())
        running.registry.apply_pod(raw_pod("lost", address="192.0.2.1"))
        async with asyncio.timeout(60):
            assert (await user.post(chat())).status == 503


async def test_a_replica_that_dies_before_the_first_byte_is_a_502_and_not_tried_again() -> None:
    async with (
        replica(die) as one,
        replica(die) as two,
        gateway(one, two) as running,
        client(running) as user,
    ):
        got = await user.post(chat())
    assert (got.status, got.error["code"]) == (502, "upstream_failed")
    assert len(one.calls) + len(two.calls) == 1


async def test_a_replica_that_dies_after_its_headers_is_still_a_502() -> None:
    async def script(call: Call) -> None:
        await call.head(EVENTS)
        call.die()

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        assert (await user.post(chat(stream=True))).status == 502


async def test_a_replica_that_dies_in_a_stream_ends_it_with_one_error_event_and_no_done() -> None:
    read = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head(EVENTS)
        await call.chunk(b'data: {"n":1}\n\ndata: {"half')
        await read.wait()
        call.die()

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        await user.send(chat(stream=True))
        await user.head()
        assert await user.chunk() == b'data: {"n":1}\n\n'
        read.set()
        rest = b""
        while chunk := await user.chunk():
            rest += chunk
    assert rest.startswith(b"data: ")
    assert rest.endswith(b"\n\n")
    assert orjson.loads(rest.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"


async def test_a_replica_that_dies_in_a_json_answer_leaves_it_visibly_cut() -> None:
    read = asyncio.Event()

    async def script(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        await read.wait()
        call.die()

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        await user.send(chat())
        assert (await user.head()).status == 200
        assert await user.reader.readexactly(1) == b"{"
        read.set()
        assert await user.reader.read() == b""  # closed 99 bytes early


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=lambda garbage: garbage[:24].decode(),
)
async def test_garbage_from_a_replica_is_a_502(garbage: bytes) -> None:
    async def script(call: Call) -> None:
        call.writer.write(garbage)

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        assert (await user.post(chat())).status == 502


async def test_a_bug_of_ours_is_a_500_in_the_right_shape() -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        del running.proxy.signer._clock
        got = await user.post(chat())
    assert (got.status, got.error["type"], got.error["code"]) == (500, "server_error", "bug")


async def test_other_paths_under_v1_with_a_model_pass_through() -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        assert (await user.post(chat(), path="/v1/embeddings?x=1%20")).status == 200
    assert there.calls[0].line == "POST /v1/embeddings?x=1%20 HTTP/1.1"


@pytest.mark.parametrize(
    "path", ["/v1/../metrics", "/v1/%2e%2e/metrics", "/v1", "/v1/", "/v1//x", "/v2/chat", "/"]
)
async def test_other_posts_never_reach_a_replica(path: str) -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        got = await user.post(chat(), path=path)
        assert got.status == 404
        assert got.error["type"] == "invalid_request_error"
    assert there.calls == []


async def test_requests_go_to_the_replica_with_fewer_in_flight() -> None:
    held = asyncio.Event()

    async def slow(call: Call) -> None:
        await held.wait()
        await call.answer(b"{}")

    async with (
        replica(slow) as one,
        replica(slow) as two,
        gateway(one, two) as running,
        client(running) as a,
        client(running) as b,
    ):
        await a.send(chat())
        await until(lambda: len(one.calls) + len(two.calls) == 1)
        await b.send(chat())
        await until(lambda: len(one.calls) == len(two.calls) == 1)
        held.set()
        assert (await a.answer()).status == (await b.answer()).status == 200


async def test_openai_python_chats_streams_lists_and_reads_errors() -> None:
    async def script(call: Call) -> None:
        if not orjson.loads(call.body).get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
            choice["message"] |= {"content": "hello"}  # type: ignore[operator]
            whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "demo"}
            await call.answer(orjson.dumps(whole | {"choices": [choice]}))
            return
        await call.head(EVENTS)
        for word in ("hel", "lo"):
            delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            part = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
            await call.chunk(b"data: %s\n\n" % orjson.dumps(part | {"choices": [delta]}))
        if orjson.loads(call.body).get("user") == "doomed":
            call.die()
            return
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    async with (
        replica(script) as there,
        gateway(there) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as user,
    ):
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [
            {"role": "user", "content": "hi"}
        ]
        whole = await user.chat.completions.create(model="demo", messages=messages)
        assert whole.choices[0].message.content == "hello"
        stream = await user.chat.completions.create(model="demo", messages=messages, stream=True)
        words = [part.choices[0].delta.content async for part in stream]
        assert words == ["hel", "lo"]
        doomed = await user.chat.completions.create(
            model="demo", messages=messages, stream=True, user="doomed"
        )
        with pytest.raises(openai.APIError, match="died"):
            [part async for part in doomed]
        assert [model.id async for model in user.models.list()] == ["demo"]
        assert (await user.models.retrieve("default/demo")).id == "default/demo"
        with pytest.raises(openai.NotFoundError, match="nope"):
            await user.chat.completions.create(model="nope", messages=messages)
        with pytest.raises(openai.NotFoundError, match="nope"):
            await user.models.retrieve("nope")


async def test_cold_models_are_listed_too_under_names_that_work() -> None:
    async with gateway() as running, client(running) as user:
        running.registry.apply_model(raw_model("cold", "team", served=[]))
        running.registry.apply_model(raw_model("late", served=["demo", "b"], created="2027-01-01"))
        listed = orjson.loads((await user.get("/v1/models")).body)
    assert listed["object"] == "list"
    assert [(each["id"], each["owned_by"]) for each in listed["data"]] == [
        ("demo", "default"),
        ("b", "default"),
        ("team/cold", "team"),
    ]
    assert all(each["object"] == "model" for each in listed["data"])
    assert listed["data"][0]["created"] == 1_795_219_200


@pytest.mark.parametrize("path", ["/v1/models/team/a", "/v1/models/team%2Fa"])
async def test_a_model_is_shown_by_a_name_with_a_slash(path: str) -> None:
    async with gateway() as running, client(running) as user:
        running.registry.apply_model(raw_model("a", "team"))
        got = await user.get(path)
    assert orjson.loads(got.body)["id"] == "team/a"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/v1/models", 405), ("PUT", "/v1/completions", 404)],
)
async def test_other_requests_get_openai_errors(method: str, path: str, status: int) -> None:
    async with gateway() as running, client(running) as user:
        got = await user.get(path, method)
    assert got.status == status
    assert set(got.error) == {"message", "type", "param", "code"}
    assert got.headers["content-type"] == JSON


async def test_metrics_count_by_existing_model_only() -> None:
    async with replica(ok) as there, gateway(there) as running, client(running) as user:
        await user.post(chat())
        for index in range(50):
            await user.post(chat(f"made-up-{index}"))
        text = (await user.get("/metrics")).body.decode()
        assert 'terrace_gateway_requests_total{code="200",model="default/demo"} 1.0' in text
        assert 'terrace_gateway_requests_total{code="404",model=""} 50.0' in text
        assert 'terrace_gateway_endpoints{model="default/demo"} 1.0' in text
        assert 'terrace_gateway_watch_age_seconds{kind="pods"}' in text
        assert 'terrace_gateway_requests_in_flight{model="default/demo"} 0.0' in text
        assert 'terrace_gateway_refusals_total{reason="model_not_found"} 50.0' in text
        assert f'request_bytes_total{{model="default/demo"}} {float(len(chat()))}' in text
        assert 'terrace_gateway_response_bytes_total{model="default/demo"}' in text
        assert "terrace_gateway_admitted_requests_limit 1024.0" in text
        assert "process_resident_memory_bytes" in text
        assert "made-up" not in text
        running.registry.remove_model(raw_model())
        assert "default/demo" not in (await user.get("/metrics")).body.decode()
