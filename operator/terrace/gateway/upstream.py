"""The HTTP client towards replicas.

Owns: its timeouts, pool and socket options, and how a body is written. Does not own: what is sent
(``proxy.py``). A replica may take minutes for an answer, so no response has a time limit; a peer
that vanished without a word is found by TCP keep-alive instead.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.payload import Payload
from typing_extensions import override

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

    from terrace.gateway.limits import Limits

IDLE_S = 3
"""Seconds an idle connection is kept: a tenth of a replica's 30, so that we close first."""
READ_BUFFER_BYTES = 32 * 1024
"""aiohttp stops reading a replica's answer when twice this waits for a slow client."""
PIECE_BYTES = 256 * 1024
"""Of a request's body, written before what was written is waited for."""
_KEEPALIVE = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 30_000,  # milliseconds until unacknowledged data ends the connection
}


class Body(Payload):
    """A request's bytes, written in pieces: a large one holds up nobody and fills no buffer."""

    _autoclose = True

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)

    @override
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._value, encoding, errors)

    @override
    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self._value)
        for start in range(0, len(view), PIECE_BYTES):
            await writer.write(view[start : start + PIECE_BYTES])


def make_session(limits: Limits) -> aiohttp.ClientSession:
    """A session for all replicas; close it at the end.

    The number of its connections is bounded by the number of requests.
    """
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=IDLE_S, socket_factory=_socket, use_dns_cache=False
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not all are on every system
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
