"""What the gateway adds to a request: time, CPU and memory, with direct access as the peer.

Owns: a bare upstream, a bare client, the cases and their verdicts. Does not own: the gateway, which
runs as ``support.gateway`` wires it, on uvloop, in a process of its own like the upstream. Usage:
``PYTHONPATH=tests python -m bench.gateway_overhead [--quick]``; one JSON object per case and line.
``target`` bounds ``added`` (ours less peer) for times and ``ours`` for CPU and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import structlog
import uvloop

from support.gateway import PRIVATE_KEY, SyncedWatch, chat, raw_model, raw_pod, until
from terrace.gateway.app import Gateway
from terrace.gateway.identity import Signer
from terrace.gateway.limits import Admission, Limits
from terrace.gateway.metrics import Metrics
from terrace.gateway.proxy import Proxy
from terrace.gateway.registry import Registry
from terrace.gateway.routing import Router
from terrace.gateway.server import make_server
from terrace.gateway.upstream import make_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAUSE_S = 0.01
"""Between two chunks of a stream, so that each is read and written on its own."""
STREAMS = 16
PADDING = b"x" * 120
ANSWER = b'{"id":"c","choices":[{"message":{"content":"hello"}}]}'
STALLED = 100
STALLED_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    requests: int
    chunks: int


# Servers: each a child process that prints its port -------------------------------------------


async def upstream() -> None:
    """Answer at once, or stream as many chunks as the body asks for, each with its time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                request = json.loads(await reader.readexactly(length))
                if "flood" in request:
                    await _flood(writer)
                elif "chunks" in request:
                    await _stream(writer, request["chunks"])
                else:
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                        b"content-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
                    )

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def _stream(writer: asyncio.StreamWriter, count: int) -> None:
    writer.write(_HEAD)
    for _ in range(count):
        event = b"data: %d %s\n\n" % (time.monotonic_ns(), PADDING)
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await asyncio.sleep(PAUSE_S)
    writer.write(b"0\r\n\r\n")


async def _flood(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD)
    event = b"data: " + b"x" * 1000 + b"\n\n"
    chunk = b"%x\r\n%s\r\n" % (len(event), event)
    for _ in range(STALLED_BYTES // len(chunk)):
        writer.write(chunk)
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def gateway(upstream_port: int) -> None:
    """The gateway in front of that upstream."""
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    limits = Limits()
    registry = Registry()
    registry.apply_model(raw_model())
    registry.apply_pod(raw_pod(port=upstream_port))
    admission = Admission(limits)
    metrics = Metrics(registry, SyncedWatch(), admission)
    async with make_session(limits) as session:
        router = Router(random.Random(1), time.monotonic)
        signer = Signer(PRIVATE_KEY, time.time)
        proxy = Proxy(registry, router, signer, session, limits, admission, metrics)
        app = Gateway(registry, proxy, metrics, lambda: "")
        server = make_server(app, limits, host="127.0.0.1", port=0, drain_timeout_s=1)
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving


@contextmanager
def _child(*arguments: str) -> Iterator[tuple[psutil.Process, int]]:
    command = [sys.executable, "-m", "bench.gateway_overhead", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), int(process.stdout.readline())
        finally:
            process.kill()


# Client ---------------------------------------------------------------------------------------


def _request(body: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n%s" % (len(body), body)


async def _ask(port: int, count: int) -> list[float]:
    """Microseconds of each of ``count`` requests, one after the other on one connection."""
    request = _request(chat())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took = []
    for _ in range(count):
        began = time.perf_counter_ns()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(len(ANSWER))
        took.append((time.perf_counter_ns() - began) / 1000)
    writer.close()
    return took


async def _listen(port: int, chunks: int) -> list[float]:
    """Microseconds from writing to reading of each chunk of one stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(chat(stream=True, chunks=chunks)))
    await reader.readuntil(b"\r\n\r\n")
    lags: list[float] = []
    while size := int(await reader.readline(), 16):
        data = await reader.readexactly(size + 2)
        now = time.monotonic_ns()
        # On a busy machine two events may have become one chunk.
        events = data[:-2].split(b"\n\n")[:-1]
        lags.extend((now - int(event.split(b" ", 2)[1])) / 1000 for event in events)
    writer.close()
    assert len(lags) == chunks
    return lags


async def _listen_all(port: int, chunks: int) -> list[float]:
    found = await asyncio.gather(*(_listen(port, chunks) for _ in range(STREAMS)))
    return [lag for lags in found for lag in lags]


async def _stall(port: int, count: int, grown: Callable[[], int]) -> int:
    """Open streams, read nothing; the most that ``grown`` shows until it settles."""
    opened = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(_request(chat(stream=True, flood=True)))
        opened.append((reader, writer))
    most, settled = 0, 0
    while settled < 10:
        await asyncio.sleep(0.1)
        now = grown()
        settled = 0 if now > most else settled + 1
        most = max(most, now)
    for _, writer in opened:
        writer.transport.abort()
    return most


# Cases ----------------------------------------------------------------------------------------


def _latency(direct: int, through: int, sizes: Sizes) -> dict[str, Any]:
    pairs = []
    for _ in range(sizes.rounds):
        theirs = statistics.median(uvloop.run(_ask(direct, sizes.requests)))
        pairs.append((statistics.median(uvloop.run(_ask(through, sizes.requests))), theirs))
    return _times("request-p50", pairs, target=2000)


def _streams(
    direct: int, through: int, sizes: Sizes, process: psutil.Process, server: psutil.Process
) -> Iterator[dict[str, Any]]:
    lags, costs = [], []
    for _ in range(sizes.rounds):
        before = _cpu_s(server)
        theirs = statistics.median(uvloop.run(_listen_all(direct, sizes.chunks)))
        their_cost = _cpu_s(server) - before
        before = _cpu_s(process)
        mine = statistics.median(uvloop.run(_listen_all(through, sizes.chunks)))
        my_cost = _cpu_s(process) - before
        lags.append((mine, theirs))
        per_chunk = 1e6 / (STREAMS * sizes.chunks)
        costs.append((my_cost * per_chunk, their_cost * per_chunk))
    yield _times(f"chunk-lag-p50-{STREAMS}", lags, target=1000)
    line = _times(f"chunk-cpu-{STREAMS}", costs, target=100)
    yield line | {"ok": line["ours"] <= line["target"]}


def _memory(through: int, process: psutil.Process) -> dict[str, Any]:
    idle = process.memory_info().rss

    def grown() -> int:
        return int(process.memory_info().rss) - idle

    each = uvloop.run(_stall(through, STALLED, grown)) / STALLED / 1024
    return {
        "case": f"memory-per-stalled-stream-{STALLED}",
        "ours": round(each, 1),
        "peer": None,
        "unit": "KiB",
        "ratio": None,
        "rounds": 1,
        "target": 512,
        "ok": each <= 512,
        "idle_mib": round(idle / 2**20, 1),
    }


def _times(case: str, pairs: list[tuple[float, float]], target: float) -> dict[str, Any]:
    ours = statistics.median(mine for mine, _ in pairs)
    peer = statistics.median(theirs for _, theirs in pairs)
    return {
        "case": case,
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "unit": "us",
        "ratio": round(ours / peer, 2) if peer else None,
        "rounds": len(pairs),
        "target": target,
        "ok": ours - peer <= target,
        "added": round(ours - peer, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gateway", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.upstream:
        uvloop.run(upstream())
    elif given.gateway:
        uvloop.run(gateway(given.gateway))
    else:
        _print_cases(Sizes(3, 500, 100) if given.quick else Sizes(7, 2000, 500))


def _print_cases(sizes: Sizes) -> None:
    with (
        _child("--upstream") as (server, direct),
        _child("--gateway", str(direct)) as (process, through),
    ):
        uvloop.run(_ask(through, 200))  # both are warm
        print(json.dumps(_latency(direct, through, sizes)), flush=True)
        for line in _streams(direct, through, sizes, process, server):
            print(json.dumps(line), flush=True)
        print(json.dumps(_memory(through, process)), flush=True)


if __name__ == "__main__":
    main()
