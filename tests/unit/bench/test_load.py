"""The benchmarks' client counts what the server says and fails a round that was cut short."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from bench.load import Ask, RoundError, run_round

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASK = Ask("bench", prompt_tokens=64, generated_tokens=3)
HOST = "127.0.0.1"


def _event(text: str, usage: dict[str, int] | None = None) -> str:
    event = {"choices": [{"text": text, "index": 0}], "usage": usage}
    return f"data: {json.dumps(event)}\n\n"


def _usage(prompt: int = 64, completion: int = 3) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


DONE = "data: [DONE]\n\n"
WHOLE = _event("a") + _event("b") + _event("c") + _event("", _usage()) + DONE


@asynccontextmanager
async def _server(events: str, status: str = "200 OK") -> AsyncIterator[tuple[int, list[str]]]:
    """Answers every request with ``events`` as one chunk each; gives port and prompts seen."""
    prompts: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        prompts.append(json.loads(await reader.readexactly(length))["prompt"])
        writer.write(f"HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for event in events.split("\n\n"):
            chunk = f"{event}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], prompts


async def test_tokens_first_tokens_and_gaps_of_all_streams_are_counted() -> None:
    async with _server(WHOLE) as (port, prompts):
        result = await run_round(HOST, port, ASK, streams=4, seed=1)
    assert result.tokens == 12
    assert len(result.first_token_s) == 4
    assert len(result.gaps_s) == 8
    assert len(set(prompts)) == 4
    assert {len(prompt) for prompt in prompts} == {64}


async def test_a_last_event_that_carries_text_and_usage_counts_as_an_event() -> None:
    async with _server(_event("a") + _event("bc", _usage()) + DONE) as (port, _):
        result = await run_round(HOST, port, ASK, streams=1, seed=1)
    assert len(result.gaps_s) == 1


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
            await run_round(HOST, port, ASK, streams=1, seed=1)


async def test_a_refusal_is_reported_with_its_status() -> None:
    async with _server("full", status="429 Too Many Requests") as (port, _):
        with pytest.raises(RoundError, match="429 Too Many Requests"):
            await run_round(HOST, port, ASK, streams=1, seed=1)
