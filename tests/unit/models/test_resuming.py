"""Going on with a download of which the source keeps no promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from support.fetching import LOOPBACK, get, stored
from support.file_server import FileServer
from terrace_runtime.contract import FetchSpec

if TYPE_CHECKING:
    from pathlib import Path


class _Store(FileServer):
    """Gives the range that is asked for, whatever If-Range says, as some object stores do."""

    def whole(self, request: web.Request) -> web.StreamResponse:
        start, size = int(request.headers.get("Range", "bytes=0-")[6:-1]), len(self.content)
        if not start:
            return web.Response(body=self.content, headers={"ETag": self.etag})
        place = f"bytes {start}-{size - 1}/{size}"
        headers = {"ETag": self.etag, "Content-Range": place}
        return web.Response(status=206, body=self.content[start:], headers=headers)


def _spec(server: FileServer) -> FetchSpec:
    """Of a source that tells no checksum."""
    endpoint = server.url.removesuffix("/model.gguf")
    return FetchSpec(uri="s3://bucket/m.gguf", s3_endpoint=endpoint, allowed_networks=LOOPBACK)


@pytest.mark.parametrize("old_size", [0, 100])
async def test_halves_of_two_files_never_become_one(
    pod: Path, content: bytes, old_size: int
) -> None:
    # Their headers are alike: nothing but the weights tells them apart.
    old = FileServer(content[:-2000] + b"y" * (2000 + old_size), etag='"v1"')
    async with _Store(content, etag='"v2"').running() as server:
        server.faults = [old.cut_after(len(content) - 1000)]
        assert stored(pod, await get(_spec(server))) == content


async def test_a_store_without_if_range_goes_on_with_the_same_file(
    pod: Path, content: bytes
) -> None:
    async with _Store(content).running() as server:
        server.faults = [server.cut_after(1000)]
        assert stored(pod, await get(_spec(server))) == content
        assert [seen.get("Range") for seen in server.requests] == [None, "bytes=1000-"]
