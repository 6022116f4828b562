"""Clients that leave or dawdle: the replica hears of it, memory stays bounded."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
from dataclasses import replace

import pytest

from support.gateway import (
    EVENTS,
    Call,
    Client,
    chat,
    client,
    gateway,
    replica,
    until,
    until_in_own_time,
)

CHUNK = b"data: " + b"x" * 65_000 + b"\n\n"


async def leave(user: Client) -> None:
    """As a killed client: the connection is reset."""
    user.writer.transport.abort()


@pytest.mark.parametrize("stage", ["before the first byte", "in the stream", "in a json answer"])
async def test_the_replica_is_hung_up_on_within_a_second_when_the_client_leaves(
    stage: str,
) -> None:
    hung_up = asyncio.Event()

    async def script(call: Call) -> None:
        if stage == "in the stream":
            await call.head(EVENTS)
            await call.chunk(b"data: 1\n\n")
        elif stage == "in a json answer":
            call.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        await call.wait_closed()
        hung_up.set()

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        await user.send(chat(stream=True))
        await until(lambda: len(there.calls) == 1)
        if stage != "before the first byte":
            assert (await user.head()).status == 200
            await user.reader.readexactly(1)
        await leave(user)
        await until_in_own_time(hung_up.is_set, 1)
        await until(lambda: running.proxy.admission.requests == 0)
        assert running.proxy.router._in_flight == {}
        assert 'code="499"' in (await running.app.metrics.render()).decode()


async def test_a_client_that_leaves_while_it_sends_its_body_never_reaches_a_replica() -> None:
    async def script(call: Call) -> None:
        await call.answer(b"{}")

    async with replica(script) as there, gateway(there) as running, client(running) as user:
        user.writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 9\r\n\r\n{")
        await until(lambda: running.proxy.admission.requests == 1)
        await leave(user)
        await until(lambda: running.proxy.admission.requests == 0)
        assert running.proxy.admission.held_bytes == 0
        assert there.calls == []


async def test_a_slow_reader_stalls_the_replica_and_gets_every_byte_in_the_end() -> None:
    sent = hashlib.sha256()
    stalled = asyncio.Event()
    total = 400

    async def script(call: Call) -> None:
        await call.head(EVENTS)
        for number in range(total):
            sent.update(CHUNK)
            try:
                async with asyncio.timeout(0.3):
                    await call.chunk(CHUNK)
            except TimeoutError:
                sent_chunks.append(number)
                stalled.set()
                await call.writer.drain()
        await call.end()

    sent_chunks: list[int] = []
    async with replica(script) as there, gateway(there) as running:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", running.port))
            raw.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
            user = Client(reader, writer)
            await user.send(chat(stream=True))
            await asyncio.wait_for(stalled.wait(), 60)
            # What is under way now sits in kernel buffers and our bounded ones.
            assert sent_chunks[0] < total * 3 // 4
            (protocol,) = running.connections
            assert protocol.transport.get_write_buffer_size() < 512 * 1024
            received = hashlib.sha256()
            await user.head()
            while chunk := await user.chunk():
                received.update(chunk)
            writer.close()
    assert received.digest() == sent.digest()


async def test_a_reader_that_never_reads_is_cut_off_and_the_replica_freed() -> None:
    hung_up = asyncio.Event()

    async def script(call: Call) -> None:
        try:
            await call.head(EVENTS)
            while True:
                await call.chunk(CHUNK)
        except ConnectionError:
            hung_up.set()

    async with (
        replica(script) as there,
        gateway(there, stall_timeout_s=0.3) as running,
        client(running) as user,
    ):
        await user.send(chat(stream=True))
        user.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.wait_for(hung_up.wait(), 60)
        await until(lambda: running.proxy.admission.requests == 0)


async def test_headers_that_do_not_end_are_cut_off() -> None:
    async with gateway(header_timeout_s=0.1) as running, client(running) as user:
        user.writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: ")
        async with asyncio.timeout(60):
            assert await user.rest() == b""


async def test_the_second_request_of_a_connection_has_the_same_time_limit() -> None:
    async with gateway(header_timeout_s=60) as running, client(running) as user:
        assert (await user.get("/healthz")).status == 200
        (connection,) = running.connections
        connection._limits = replace(connection._limits, header_timeout_s=0.1)
        user.writer.write(b"GET /hea")
        async with asyncio.timeout(60):
            assert await user.rest() == b""


async def test_an_idle_connection_is_not_held_to_the_time_limit_for_headers() -> None:
    async with gateway(header_timeout_s=60) as running, client(running) as user:
        assert (await user.get("/healthz")).status == 200
        (connection,) = running.connections
        assert connection._timer is None


async def test_headers_over_the_limit_are_refused() -> None:
    async with gateway(max_header_bytes=4096) as running, client(running) as user:
        user.writer.write(b"GET / HTTP/1.1\r\nhost: g\r\nx: " + b"x" * 100_000)
        got = await user.answer()
    assert (got.status, got.error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: -1\r\n",
        b"content-length: 0x5\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"bad header: 1\r\n",
        b"x: a\r\n folded\x00\r\n",
    ],
)
async def test_ambiguous_or_broken_http_is_refused(head: bytes) -> None:
    async with gateway() as running, client(running) as user:
        user.writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\n" + head + b"\r\n")
        got = await user.answer()
    assert got.status in {400, 501}


async def test_length_and_chunks_together_smuggle_nothing() -> None:
    async def script(call: Call) -> None:
        await call.answer(b"{}")

    smuggled = b"POST /v1/admin HTTP/1.1\r\nhost: g\r\n\r\n"
    async with replica(script) as there, gateway(there) as running, client(running) as user:
        user.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n%s" % (5 + len(smuggled), smuggled)
        )
        user.writer.write_eof()
        await user.reader.read()
        assert there.calls == []


async def test_a_bad_chunk_in_the_body_ends_the_connection() -> None:
    async with gateway() as running, client(running) as user:
        user.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n"
        )
        async with asyncio.timeout(60):
            assert b" 400 " in (await user.reader.read())[:20]
        await until(lambda: running.proxy.admission.requests == 0)


async def test_connections_beyond_the_limit_are_closed() -> None:
    async with gateway(max_connections=1) as running, client(running) as first:
        assert (await first.get("/healthz")).status == 200
        async with client(running) as second:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await second.get("/healthz")
        assert (await first.get("/healthz")).status == 200


async def test_a_drain_turns_readiness_red_and_lets_go_of_clients_while_it_still_answers() -> None:
    async with gateway(lame_duck_s=3600) as running:
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: running.app.draining)
        # Clients that are answered now look elsewhere next: none finds its connection closed.
        for path, status in (("/readyz", 503), ("/v1/models", 200), ("/nothing", 404)):
            async with client(running) as probe:
                reply = await probe.get(path)
                assert (reply.status, reply.headers.get("connection")) == (status, "close")
                assert await probe.reader.read() == b""
        assert running.server.servers[0].is_serving()


async def test_a_drain_stops_accepting_after_a_moment_and_lets_streams_finish() -> None:
    finish = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head(EVENTS)
        await call.chunk(b"data: 1\n\n")
        await finish.wait()
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    async with replica(script) as there, gateway(there, lame_duck_s=0.3, drain_s=60) as running:
        async with client(running) as user:
            await user.send(chat(stream=True))
            await user.head()
            assert await user.chunk() == b"data: 1\n\n"
            began = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: not running.server.servers[0].is_serving())
            assert time.monotonic() - began >= 0.29
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", running.port)
            finish.set()
            assert await user.chunk() == b"data: [DONE]\n\n"
            assert await user.chunk() == b""
        await asyncio.wait_for(running.serving, 60)


async def test_streams_over_the_drain_limit_end_with_an_error_event() -> None:
    async def script(call: Call) -> None:
        await call.head(EVENTS)
        await call.chunk(b"data: 1\n\n")
        await call.wait_closed()

    async with replica(script) as there, gateway(there, lame_duck_s=0, drain_s=1) as running:
        async with client(running) as user:
            await user.send(chat(stream=True))
            await user.head()
            assert await user.chunk() == b"data: 1\n\n"
            os.kill(os.getpid(), signal.SIGTERM)
            rest = await user.chunk()
        assert b"gateway is stopping" in rest
        await asyncio.wait_for(running.serving, 60)
