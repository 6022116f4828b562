"""The benchmarks' client counts what the server says and fails a round that was cut short."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from bench import plans
from bench.load import Ask, Plan, Round, User, run_round
from bench.reading import RoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "127.0.0.1"


def _event(text: str, usage: dict[str, int] | None = None) -> str:
    event = {"choices": [{"text": text, "index": 0}], "usage": usage}
    return f"data: {json.dumps(event)}\n\n"


def _usage(prompt: int = 64, completion: int = 3) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


DONE = "data: [DONE]\n\n"
WHOLE = _event("a") + _event("b") + _event("c") + _event("", _usage()) + DONE


@asynccontextmanager
async def _server(
    events: str, status: str = "200 OK"
) -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """Answers every request with ``events`` as one chunk each; gives port and bodies seen."""
    bodies: list[dict[str, Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for event in events.split("\n\n"):
            chunk = f"{event}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], bodies


def _together(streams: int) -> Plan:
    return plans.at_once(streams, 64, 3, seed=1)


async def test_tokens_first_tokens_and_gaps_of_all_streams_are_counted() -> None:
    async with _server(WHOLE) as (port, bodies):
        result = await run_round(HOST, port, _together(4))
    assert result.tokens == 12
    assert len(result.first_token_s) == 4
    assert len(result.gaps_s) == 8
    prompts = {body["prompt"] for body in bodies}
    assert len(prompts) == 4
    assert {len(prompt) for prompt in prompts} == {64}


async def test_a_last_event_that_carries_text_and_usage_counts_as_an_event() -> None:
    async with _server(_event("a") + _event("bc", _usage()) + DONE) as (port, _):
        result = await run_round(HOST, port, _together(1))
    assert len(result.gaps_s) == 1


async def test_a_first_event_without_text_is_no_first_token() -> None:
    async with _server(_event("") + WHOLE) as (port, _):
        result = await run_round(HOST, port, _together(1))
    assert len(result.gaps_s) == 2


@pytest.mark.parametrize(
    "events",
    [
        _event("a") + _event("", _usage(completion=2)) + DONE,
        _event("a") + _event("", _usage(prompt=65)) + DONE,
        _event("a") + _event("b"),
        "",
    ],
    ids=["too few tokens", "another prompt", "cut short", "nothing"],
)
async def test_a_stream_that_did_not_bring_what_was_asked_fails_the_round(events: str) -> None:
    async with _server(events) as (port, _):
        with pytest.raises(RoundError, match="asked for"):
            await run_round(HOST, port, _together(1))


async def test_a_refusal_is_reported_with_its_status() -> None:
    async with _server("full", status="429 Too Many Requests") as (port, _):
        with pytest.raises(RoundError, match="429 Too Many Requests"):
            await run_round(HOST, port, _together(1))


async def test_failures_are_counted_where_the_plan_says_so() -> None:
    plan = replace(_together(2), counts_failures=True)
    async with _server("full", status="429 Too Many Requests") as (port, _):
        result = await run_round(HOST, port, plan)
    assert result.failed == 2
    assert "429" in result.answers[0].error


async def test_a_round_that_takes_too_long_is_given_up() -> None:
    plan = replace(_together(1), timeout_s=0.01)

    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hang.wait()
        writer.close()

    hang = asyncio.Event()
    server = await asyncio.start_server(never, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RoundError, match="not done after"):
            await run_round(HOST, port, plan)
        hang.set()


async def test_a_conversation_carries_what_was_said() -> None:
    users = (User((Ask("12", 3), Ask("34", 3)), keeps_history=True),)
    async with _server(WHOLE) as (port, bodies):
        await run_round(HOST, port, Plan(users))
        await run_round(HOST, port, Plan(users, is_chat=True))
    assert [body["prompt"] for body in bodies[:2]] == ["12", "12abc34"]
    turns = [(one["role"], one["content"]) for one in bodies[3]["messages"]]
    assert turns == [("user", "12"), ("assistant", "abc"), ("user", "34")]


async def test_a_conversation_s_prompts_are_counted_with_their_history() -> None:
    users = (User((Ask("1" * 64, 3, 64), Ask("1" * 64, 3, 64)), keeps_history=True),)
    async with _server(WHOLE) as (port, _):
        with pytest.raises(RoundError, match="asked for 131 prompt"):
            await run_round(HOST, port, Plan(users))


async def test_a_newcomer_waits_for_the_others_and_its_end_ends_them() -> None:
    arrived: list[int] = []
    is_released = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        tokens = len(json.loads(await reader.readexactly(length))["prompt"])
        arrived.append(tokens)
        usage = _usage(prompt=200, completion=1)
        late = _event("z") + _event("", usage) + DONE
        text = late if tokens == 200 else _event("a") * 2
        writer.write(f"HTTP/1.1 200 OK\r\n\r\n{text}".encode())
        await writer.drain()
        if tokens != 200:
            await is_released.wait()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        plan = plans.newcomer(2, after_events=2, prompt_tokens=200, most_tokens=100, seed=1)
        result = await run_round(HOST, port, plan)
        is_released.set()
    assert arrived == [64, 64, 200]
    assert [one.is_cut for one in result.answers] == [True, True, False]
    assert [len(one.times) for one in result.answers] == [2, 2, 1]


async def test_plans_and_rounds_survive_the_way_to_the_client_s_process() -> None:
    plan = plans.newcomer(2, 2, 200, 100, seed=1)
    assert Plan.from_json(json.dumps(asdict(plan))) == plan
    async with _server(WHOLE) as (port, _):
        result = await run_round(HOST, port, _together(1))
    assert Round.from_json(json.dumps(asdict(result))) == result
