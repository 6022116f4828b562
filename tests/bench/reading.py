"""One answer of server-sent events over a raw socket: what came, and when.

Owns: sending one request, noting the bytes of its answer with their times, telling events from
them. Does not own: who asks what (``load.py``). The client shares its cores with the server that it
measures, so a read costs one call and no parsing: what came is taken apart when it has ended.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_EVENT, _DONE = b"data: ", b"data: [DONE]"


class RoundError(Exception):
    """An answer is not what was asked for; the message says what came."""


class Reading(asyncio.Protocol):
    """One connection: what came and when. It is taken apart when it has ended."""

    def __init__(self, request: bytes, mark: int, reached: Callable[[], None]) -> None:
        """``reached`` is called when ``mark`` events came; never with 0."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._to_mark = mark
        self._reached = reached
        self._pieces: list[bytes] = []
        self._times: list[float] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note it."""
        self._times.append(time.perf_counter())
        self._pieces.append(data)
        if self._to_mark > 0:
            self._to_mark -= data.count(_EVENT)
            if self._to_mark <= 0:
                self._reached()
        if _DONE in data and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """What came is all there is."""
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.close()

    def check(self) -> None:
        """Raise RoundError with what came in place of an answer."""
        status, _, rest = b"".join(self._pieces).partition(b"\r\n")
        if b" 200 " not in status:
            raise RoundError(f"{status.decode()}: {rest[:2000].decode(errors='replace')}")

    def events(self) -> tuple[list[float], list[bytes]]:
        """When the end of each event's line came, and the line; none of what is not complete."""
        ends = list(itertools.accumulate(map(len, self._pieces)))
        times: list[float] = []
        lines: list[bytes] = []
        at = 0
        # Chunk sizes and headers stand on lines of their own and are passed over.
        for line in b"".join(self._pieces).splitlines(keepends=True):
            at += len(line)
            is_whole = line.endswith(b"\n") and not line.startswith(_DONE)
            if is_whole and line.startswith(_EVENT):
                times.append(self._times[bisect.bisect_left(ends, at)])
                lines.append(line)
        return times, lines
