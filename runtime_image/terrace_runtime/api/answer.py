"""Sends one generation as an ASGI response: a JSON document or a stream of events.

Owns: the response's life: nothing is sent before the first output (so that refusals keep their
status), a client that leaves or stops reading ends the generation, a failure in the middle is one
error event and no [DONE]. Does not own: what is in a document or an event (``wire``).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from starlette.responses import Response

from terrace_runtime.api.access_log import note
from terrace_runtime.api.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from starlette.types import Receive, Scope, Send

    from terrace_runtime.api.generation import Generation
    from terrace_runtime.engine.request import RequestOutput

STALL_SECONDS: Final = 60.0
"""A client that takes nothing for this long is taken for gone."""
_DONE: Final = b"data: [DONE]\n\n"
_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Wire(Protocol):
    """What an answer looks like; ``wire`` and ``embeddings`` have them."""

    def collect(self, index: int, output: RequestOutput) -> None:
        """Keep an output for the document."""

    def document(self, generation: Generation) -> bytes:
        """The whole answer."""

    def event(self, index: int, output: RequestOutput) -> bytes:
        """The events of one output."""

    def last_event(self, generation: Generation) -> bytes:
        """What comes before the end of a stream."""


class Answer(Response):
    """An ASGI app that generates while it answers."""

    def __init__(
        self, generation: Generation, wire: Wire, *, stream: bool, stall_s: float = STALL_SECONDS
    ) -> None:
        """``generation`` is not entered yet."""
        self._generation = generation
        self._wire = wire
        self._stream = stream
        self._stall_s = stall_s
        self._sending_since: float | None = None
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        work = (
            self._send_stream(send) if self._stream else self._send_document(scope, receive, send)
        )
        try:
            await self._while_connected(work, receive)
        finally:
            note(scope, **self._generation.log_fields())

    async def _send_document(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._generation as generation:
                async with contextlib.aclosing(generation.outputs()) as outputs:
                    async for index, output in outputs:
                        self._wire.collect(index, output)
                body = self._wire.document(generation)
                headers = generation.cache_headers()
        except ApiError as error:
            await self._timed(error.response()(scope, receive, send))
            return
        response = Response(body, media_type="application/json")
        response.raw_headers.extend(headers)
        await self._timed(response(scope, receive, send))

    async def _send_stream(self, send: Send) -> None:
        has_begun = False
        try:
            async with self._generation as generation:
                async with contextlib.aclosing(generation.outputs()) as outputs:
                    async for index, output in outputs:
                        event = self._wire.event(index, output)
                        if not has_begun:
                            has_begun = True
                            headers = [*_STREAM_HEADERS, *generation.cache_headers()]
                            await self._timed(send(_start(200, headers)))
                        if event:
                            await self._timed(send(_body(event, more=True)))
                await self._timed(send(_body(self._wire.last_event(generation) + _DONE)))
        except ApiError as error:
            if has_begun:
                await self._timed(send(_body(error.event())))
                return
            response = error.response()
            await self._timed(send(_start(error.status, response.raw_headers)))
            await self._timed(send(_body(bytes(response.body))))

    async def _timed(self, sending: Awaitable[None]) -> None:
        self._sending_since = asyncio.get_running_loop().time()
        await sending
        self._sending_since = None

    async def _while_connected(self, work: Coroutine[None, None, None], receive: Receive) -> None:
        """Run ``work`` until it is done or the client is gone; then it is cancelled."""
        working = asyncio.create_task(work)
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            while not working.done() and not leaving.done() and not self._has_stalled():
                await asyncio.wait(
                    {working, leaving},
                    timeout=self._stall_s / 2,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        if not working.cancelled():
            working.result()

    def _has_stalled(self) -> bool:
        since = self._sending_since
        return since is not None and asyncio.get_running_loop().time() - since > self._stall_s


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, object]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def _body(body: bytes, *, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": more}
