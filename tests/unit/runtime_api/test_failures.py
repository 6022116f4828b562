"""Refusals, deaths, clients that leave and clients that do not read: each ends in one clear way."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import openai
import orjson
import pytest
import structlog

from support.runtime_http import (
    LONG_S,
    ScriptedEngine,
    config,
    piece,
    raw,
    running,
    until,
    words,
)
from terrace_runtime.api.answer import Answer
from terrace_runtime.api.generation import Generation
from terrace_runtime.api.wire import ChatWire
from terrace_runtime.backend import DEAD_END
from terrace_runtime.engine.request import (
    EngineError,
    FinishReason,
    InvalidRequestError,
    QueueFullError,
    Request,
)

BODY: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("late", [False, True])
async def test_a_request_that_cannot_run_is_a_400_with_its_param(
    *, stream: bool, late: bool
) -> None:
    error = InvalidRequestError("the prompt has 300 tokens, the context holds 256", "messages")
    engine = ScriptedEngine(lambda _: [error]) if late else ScriptedEngine(refusal=error)
    async with running(engine) as site, site.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**BODY, stream=stream)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


async def test_only_a_prompt_exceeds_the_context() -> None:
    why = "response_format cannot be used: Pointer '/$defs/context' does not exist"
    engine = ScriptedEngine(lambda _: [InvalidRequestError(why, "response_format")])
    async with running(engine) as site, site.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**BODY)
    assert (caught.value.param, caught.value.code) == ("response_format", None)


async def test_a_full_queue_is_a_429_with_retry_after() -> None:
    engine = ScriptedEngine(refusal=QueueFullError(64, 500))
    async with running(engine) as site:
        reply = await raw(site.port, "POST", "/v1/chat/completions", orjson.dumps(BODY))
    assert (reply.status, reply.headers["retry-after"]) == (429, "120")
    assert orjson.loads(reply.body)["error"]["type"] == "rate_limit_error"


async def test_choices_beyond_the_queue_leave_nothing_running() -> None:
    class Tight(ScriptedEngine):
        def submit(self, request: Request) -> Any:
            if len(self.requests) == 2:
                raise QueueFullError(2, 1)
            return super().submit(request)

    engine = Tight()
    async with running(engine) as site:
        body = orjson.dumps({**BODY, "n": 4})
        reply = await raw(site.port, "POST", "/v1/chat/completions", body)
    assert reply.status == 429
    assert {request.id for request in engine.requests} <= set(engine.aborted)


async def test_an_engine_that_dies_mid_stream_is_one_error_event_and_no_done() -> None:
    engine = ScriptedEngine(
        lambda _: [piece("Hel"), piece("", 0, finish=FinishReason.ERROR, error="SIGSEGV in a step")]
    )
    async with running(engine) as site, site.client() as client:
        stream = await client.chat.completions.create(**BODY, stream=True)
        with pytest.raises(openai.APIError, match="SIGSEGV in a step"):
            _ = [chunk async for chunk in stream]
        body = orjson.dumps({**BODY, "stream": True})
        reply = await raw(site.port, "POST", "/v1/chat/completions", body)
    assert reply.body.count(b'"error"') == 1
    assert b"[DONE]" not in reply.body
    assert reply.body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_go_on_is_no_fault_of_the_engine(*, stream: bool) -> None:
    why = f"{DEAD_END}: no token can follow"
    end = piece("", 0, num_prompt_tokens=7, finish=FinishReason.ERROR, error=why)
    body = {**BODY, "extra_body": {"guided_regex": "a[&&b]"}, "stream": stream}
    async with running(ScriptedEngine(lambda _: [end])) as site, site.client() as client:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            await client.chat.completions.create(**body)
    assert why in caught.value.message
    assert (caught.value.param, caught.value.code) == ("guided_regex", "generation_failed")


async def test_an_engine_that_dies_before_the_first_token_is_a_500() -> None:
    engine = ScriptedEngine(lambda _: [EngineError("killed")])
    async with running(engine) as site, site.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="killed"):
                await client.chat.completions.create(**BODY, stream=stream)


async def test_one_dead_choice_ends_the_others() -> None:
    never = asyncio.Event()
    engine = ScriptedEngine(
        lambda r: [EngineError("killed")] if r.id.endswith("-1") else [piece("a"), never]
    )
    async with running(engine) as site, site.client() as client:
        with pytest.raises(openai.InternalServerError, match="killed"):
            await client.chat.completions.create(**BODY, n=3)
        await until(lambda: not engine.open)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_client_that_leaves_ends_its_request(*, stream: bool, has_begun: bool) -> None:
    never = asyncio.Event()
    engine = ScriptedEngine(lambda _: [piece("a"), never] if has_begun else [never])
    async with running(engine) as site:
        body = orjson.dumps({**BODY, "stream": stream})
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await until(lambda: bool(engine.open))
        writer.transport.abort()
        await until(lambda: not engine.open)
        assert engine.aborted == [engine.requests[0].id]
        metrics = (await raw(site.port, "GET", "/metrics")).body.decode()
    assert 'terrace_runtime_requests_total{endpoint="chat",outcome="abort"} 1.0' in metrics


async def test_a_client_that_never_reads_is_cut_off() -> None:
    engine = ScriptedEngine(lambda _: [piece("x" * 10_000) for _ in range(3000)] + words())
    async with running(engine) as site:
        generation = Generation(site.state, [Request(id="slow")], "chat", 1)
        wire = ChatWire("slow", 1, "demo", "fp", wants_usage=False)
        answer = Answer(generation, wire, stream=True, stall_s=0.2)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        async def receive() -> Any:
            return await asyncio.Event().wait()

        async with asyncio.timeout(LONG_S):
            await answer({"type": "http"}, receive, send)
        assert not engine.open


async def test_loading_draining_and_dead_replicas_say_503() -> None:
    hold = asyncio.Event()
    engine = ScriptedEngine(hold_start=hold)
    async with running(engine, start=False) as site:
        starting = asyncio.create_task(site.state.start())
        for path, status in (("/readyz", 503), ("/healthz", 200), ("/v1/models", 200)):
            assert (await raw(site.port, "GET", path)).status == status
        reply = await raw(site.port, "POST", "/v1/chat/completions", orjson.dumps(BODY))
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        report = orjson.loads((await raw(site.port, "GET", "/v1/runtime")).body)
        assert (report["state"], report["context_tokens"]) == ("loading", 256)
        hold.set()
        await starting
        assert (await raw(site.port, "GET", "/readyz")).status == 200
        await site.state.drain()
        assert (await raw(site.port, "GET", "/readyz")).status == 503
        assert (await raw(site.port, "GET", "/healthz")).status == 200
        reply = await raw(site.port, "POST", "/v1/chat/completions", orjson.dumps(BODY))
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        engine.error = "a step took longer than 60 s"
        for path in ("/readyz", "/healthz"):
            reply = await raw(site.port, "GET", path)
            assert reply.status == 503
            assert b"longer than 60 s" in reply.body


async def test_a_drain_lets_a_stream_end_and_aborts_what_is_left() -> None:
    go = asyncio.Event()
    engine = ScriptedEngine(lambda _: [piece("a"), go, *words("b")])
    async with running(engine, config(drain_timeout_s=LONG_S)) as site, site.client() as client:
        stream = await client.chat.completions.create(**BODY, stream=True)
        draining = asyncio.create_task(site.state.drain())
        await until(lambda: engine.is_draining)
        go.set()
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        await draining
    assert "".join(text) == "ab"

    ended = ScriptedEngine(lambda _: [piece("a"), piece("", 0, finish=FinishReason.ABORT)])
    async with running(ended) as site, site.client() as client:
        stream = await client.chat.completions.create(**BODY, stream=True)
        with pytest.raises(openai.APIError, match="shutting down"):
            _ = [chunk async for chunk in stream]
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**BODY)
        assert caught.value.status_code == 503


async def test_a_crash_of_ours_is_an_openai_error_with_an_id() -> None:
    engine = ScriptedEngine(refusal=RuntimeError("secret detail"))
    async with running(engine) as site:
        for stream in (False, True):
            body = orjson.dumps({**BODY, "stream": stream})
            with structlog.testing.capture_logs() as logs:
                reply = await raw(site.port, "POST", "/v1/chat/completions", body)
            crash = next(entry for entry in logs if entry["event"] == "crash")
            assert crash["request_id"] == reply.headers["x-request-id"]
            assert (reply.status, len(reply.headers["x-request-id"])) == (500, 32)
            assert orjson.loads(reply.body)["error"]["code"] == "internal_error"
            assert b"secret detail" not in reply.body


async def test_requests_with_one_id_share_nothing() -> None:
    engine = ScriptedEngine()
    async with running(engine) as site:
        headers = {"X-Request-Id": "same"}
        replies = await asyncio.gather(
            *(
                raw(site.port, "POST", "/v1/chat/completions", orjson.dumps(BODY), headers)
                for _ in range(4)
            )
        )
    assert all(reply.status == 200 for reply in replies)
    assert len({request.id for request in engine.requests}) == 4


async def test_a_body_that_stops_halfway_is_forgotten() -> None:
    engine = ScriptedEngine()
    async with running(engine) as site:
        with socket.create_connection(("127.0.0.1", site.port)) as half:
            half.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
            )
        assert (await raw(site.port, "GET", "/healthz")).status == 200
    assert engine.requests == []
