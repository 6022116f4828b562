"""The client of the benchmarks: N streams at once over raw sockets, in a process of its own.

Owns: sending the prompts, reading server-sent events, and what a round measured. Does not own: the
servers or what is compared (``engine.py``). It is the same for every server and does as little as
it can per event, for it runs on the servers' own cores. A token counts when the server's ``usage``
says so; a stream that was cut short or whose counts are not what was asked fails the round.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import string
import sys
import time
from dataclasses import asdict, dataclass

_TIMEOUT_S = 300


class RoundError(Exception):
    """A stream did not bring what was asked; the message says what came."""


@dataclass(frozen=True)
class Round:
    """What one round measured; seconds and counts over all of its streams."""

    seconds: float
    """From the first request to the end of the last stream."""
    tokens: int
    first_token_s: list[float]
    gaps_s: list[float]
    """Between two events that bring text, all streams together."""


@dataclass(frozen=True)
class Ask:
    """What every stream of a round asks for."""

    model: str
    prompt_tokens: int
    generated_tokens: int


def digits(seed: int, count: int) -> str:
    """A prompt of ``count`` tokens of the benchmark models; other seeds give other prompts."""
    return "".join(random.Random(seed).choices(string.digits, k=count))


async def run_round(host: str, port: int, ask: Ask, streams: int, seed: int) -> Round:
    """Run ``streams`` different prompts at once. Raises RoundError."""
    prompts = [digits(seed * 1000 + index, ask.prompt_tokens) for index in range(streams)]
    started = time.perf_counter()
    async with asyncio.timeout(_TIMEOUT_S):
        times = await asyncio.gather(*(_stream(host, port, ask, prompt) for prompt in prompts))
    seconds = time.perf_counter() - started
    return Round(
        seconds=seconds,
        tokens=streams * ask.generated_tokens,
        first_token_s=[one[0] - started for one in times],
        gaps_s=[late - early for one in times for early, late in itertools.pairwise(one)],
    )


async def _stream(host: str, port: int, ask: Ask, prompt: str) -> list[float]:
    """When each event with text arrived, of one completion."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(_request(host, port, ask, prompt))
        status = await reader.readline()
        if b" 200 " not in status:
            raise RoundError(f"{status.decode().strip()}: {(await reader.read(2000)).decode()}")
        times: list[float] = []
        usage: dict[str, int] = {}
        # Chunk sizes and headers stand on lines of their own and are passed over.
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            times.append(time.perf_counter())
            if b'"usage":{' in line or b'"usage": {' in line:
                event = json.loads(line[6:])
                usage = event["usage"]
                if not any(choice.get("text") for choice in event.get("choices", ())):
                    times.pop()
        got = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        if got != (ask.prompt_tokens, ask.generated_tokens) or not times:
            raise RoundError(f"asked for {ask}, got {got} tokens in {len(times)} events")
        return times
    finally:
        writer.close()


def _request(host: str, port: int, ask: Ask, prompt: str) -> bytes:
    body = json.dumps(
        {
            "model": ask.model,
            "prompt": prompt,
            "max_tokens": ask.generated_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    """Run one round against HOST PORT and print it as JSON."""
    parser = argparse.ArgumentParser(prog="load.py", description="One round of N streams.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--model", default="bench")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--generated-tokens", type=int, default=128)
    given = parser.parse_args()
    ask = Ask(given.model, given.prompt_tokens, given.generated_tokens)
    try:
        result = asyncio.run(run_round(given.host, given.port, ask, given.streams, given.seed))
    except (RoundError, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
