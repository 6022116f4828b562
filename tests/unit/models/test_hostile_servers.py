"""Servers that break HTTP itself: each ends in our error, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.fetching import LOOPBACK, QUICK, failure, get
from terrace_runtime.contract import FetchSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

OK = b"HTTP/1.1 200 OK\r\n"
PARTIAL = b"HTTP/1.1 206 Partial Content\r\n"
ANSWERS = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "half a line": b"HTTP/1.1 2",
    "no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of its own": b"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n",
    "informational for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    "a header of megabytes": OK + b"X: " + b"a" * 2**21 + b"\r\n\r\n",
    "headers without end": OK + b"X-A: b\r\n" * 100_000,
    "a negative length": OK + b"Content-Length: -5\r\n\r\nGGUF",
    "two lengths": OK + b"Content-Length: 4\r\nContent-Length: 9\r\n\r\nGGUF",
    "a length of letters": OK + b"Content-Length: abc\r\n\r\nGGUF",
    "a length beyond all disks": OK + b"Content-Length: 99999999999999999999\r\n\r\nGGUF",
    "broken chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nGGUF",
    "a chunk of 2^70 bytes": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"4" * 18 + b"\r\nGGUF",
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\n\r\n",
    "a redirect with a bell": b"HTTP/1.1 302 Found\r\nLocation: http://h\x07/\r\n\r\n",
    "a redirect to no name": b"HTTP/1.1 302 Found\r\nLocation: http://a..b/\r\n\r\n",
    "a redirect to half an address": b"HTTP/1.1 302 Found\r\nLocation: http://[::1/m\r\n\r\n",
    "a redirect in Latin 1": b"HTTP/1.1 302 Found\r\nLocation: /caf\xe9.gguf\r\n\r\n",
    "headers in Latin 1": OK
    + b'ETag: "\xe9"\r\nContent-Type: caf\xe9/x\r\nX-Error-Code: \xe9\r\n'
    + b"Content-Length: 4\r\n\r\nGGUF",
    "an encoding in Latin 1": OK + b"Content-Encoding: caf\xe9\r\nContent-Length: 4\r\n\r\nGGUF",
    "a partial of nothing asked": PARTIAL + b"Content-Length: 4\r\n\r\nGGUF",
    "a partial from the middle": PARTIAL
    + b"Content-Range: bytes 5-8/9\r\nContent-Length: 4\r\n\r\nGGUF",
    "a date that is none": b"HTTP/1.1 503 Busy\r\nRetry-After: Noon\r\nContent-Length: 0\r\n\r\n",
    "a date beyond all zones": b"HTTP/1.1 503 Busy\r\n"
    b"Retry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999999999\r\nContent-Length: 0\r\n\r\n",
    "a wait of years": b"HTTP/1.1 400 No\r\nRetry-After: 999999999\r\nContent-Length: 0\r\n\r\n",
    "a challenge to a stranger": b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\r\n\r\n",
}


DOCUMENTS = {
    "no JSON": b"<html>",
    "deep nesting": b"[" * 1_000_000,
    "a list": b"[1, 2]",
    "numbers for words": b'{"sha": 5, "layers": 5, "manifests": 5, "siblings": 5}',
    "a commit that is a path": b'{"sha": "../../../etc", "siblings": []}',
    "a digest that is a path": b'{"layers": [{"digest": "sha256:../../x", "size": 1}]}',
    "a size below nothing": b'{"layers": [{"digest": "sha256:' + b"0" * 64 + b'", "size": -1}]}',
    "no end": b'{"sha": "' + b"c" * 33 * 2**20,
    "not UTF-8": b'{"sha": "\xff\xfe"}',
    "an index of itself": b'{"manifests": [{"digest": "sha256:' + b"0" * 64 + b'", "size": 1}]}',
    "files of no name": b'{"sha": "' + b"c" * 40 + b'", "siblings": [{"rfilename": ""}]}',
}


@contextlib.asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[str]:
    """Sends the same bytes to everybody and hangs up."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("kind", ["http", "hf", "s3", "oci"])
async def test_every_answer_ends_in_our_error(pod: Path, kind: str, name: str) -> None:
    async with raw_server(ANSWERS[name]) as url:
        values = {
            "http": {"uri": f"{url}/m.gguf", "sha256": "0" * 64},
            "hf": {"uri": "hf://owner/repo", "hf_endpoint": url},
            "s3": {"uri": "s3://bucket/m.gguf", "s3_endpoint": url},
            "oci": {"uri": "oci://r.example/ai/model", "oci_endpoint": url},
        }[kind]
        spec = FetchSpec.model_validate({**values, "allowed_networks": LOOPBACK})
        limits = replace(QUICK, attempts=2, read_timeout_s=1)
        found = failure(await asyncio.wait_for(get(spec, limits), 60))
        assert len(found.message) <= 1024
        assert "\r" not in found.message


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("kind", ["hf", "oci"])
async def test_every_document_ends_in_our_error(pod: Path, kind: str, name: str) -> None:
    body = DOCUMENTS[name]
    async with raw_server(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body) as url:
        uri = {"hf": "hf://owner/repo", "oci": "oci://r.example/ai/model"}[kind]
        spec = FetchSpec.model_validate(
            {"uri": uri, f"{kind}_endpoint": url, "allowed_networks": LOOPBACK}
        )
        found = failure(await asyncio.wait_for(get(spec), 60))
        assert found.reason in {"DownloadFailed", "UnsupportedFormat", "ChecksumMismatch"}
        assert found.permanent
