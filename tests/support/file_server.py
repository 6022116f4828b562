"""An HTTP server of one file that misbehaves on order, for tests of downloads."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FileServer:
    """Serves ``content`` at any path; each entry of ``faults`` answers one request instead."""

    content: bytes
    etag: str = '"v1"'
    faults: list[Handler] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FileServer]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/model.gguf"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.headers))
        if self.faults:
            return await self.faults.pop(0)(request)
        return self.whole(request)

    def whole(self, request: web.Request) -> web.StreamResponse:
        """What an honest server does, with ranges."""
        headers = {"ETag": self.etag}
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked is None or request.headers.get("If-Range") != self.etag:
            return web.Response(body=self.content, headers=headers)
        start, size = int(asked[1]), len(self.content)
        if start >= size:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        return web.Response(status=206, body=self.content[start:], headers=headers)

    def part_of(self, count: int) -> Handler:
        """Give ``count`` bytes of what was asked for, which a server may."""

        async def answer(request: web.Request) -> web.StreamResponse:
            start, size = int(request.headers["Range"][6:-1]), len(self.content)
            part = self.content[start : start + count]
            place = f"bytes {start}-{start + len(part) - 1}/{size}"
            headers = {"ETag": self.etag, "Content-Range": place}
            return web.Response(status=206, body=part, headers=headers)

        return answer

    def cut_after(self, count: int) -> Handler:
        """Send ``count`` bytes of the announced length, then break the connection."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(
                headers={"ETag": self.etag, "Content-Length": str(len(self.content))}
            )
            await response.prepare(request)
            await response.write(self.content[:count])
            await asyncio.sleep(0)
            assert request.transport is not None
            request.transport.close()
            return response

        return answer


def announce(length: int) -> Handler:
    """Say that ``length`` bytes follow, and send none."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length)})
        await response.prepare(request)
        return response

    return answer


def status(code: int, **headers: str) -> Handler:
    """Answer with a status; underscores in header names are hyphens."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return web.Response(status=code, headers=named)

    return answer


def body(content: bytes, **headers: str) -> Handler:
    """Answer 200 with ``content``."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return web.Response(body=content, headers=named)

    return answer


def endless(first: bytes) -> Handler:
    """A body without a length that never ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(first)
        while True:
            await response.write(bytes(65_536))

    return answer
