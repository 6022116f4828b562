"""How much the gateway takes on, and the counters that hold it to that.

Owns: every bound on size, count and time, and admission. Does not own: what a refused client is
told beyond the error raised here. Pure.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one gateway process; README and chart quote these defaults."""

    max_requests: int = 1024
    """Requests under way at once; the next one gets 429."""
    max_connections: int = 4096
    """Client connections, idle ones too; the next one is closed."""
    max_body_bytes: int = 32 * MIB
    """Bytes of one request body, images in it among them; more gets 413."""
    max_held_bytes: int = 128 * MIB
    """Bytes of all bodies that wait to be sent to a replica; more gets 429."""
    max_header_bytes: int = 32 * 1024
    """Bytes of request line and headers."""
    header_timeout_s: float = 10
    """Seconds a client may take to send its headers."""
    body_timeout_s: float = 60
    """Seconds a client may take to send its body."""
    stall_timeout_s: float = 120
    """Seconds a client may leave a full stream unread before it is cut off."""
    keep_alive_s: int = 75
    """Seconds an idle client connection is kept."""
    connect_timeout_s: float = 2
    """Seconds for the connection to a replica. A response itself has no time limit."""


class Admission:
    """Counts requests and the bytes of their bodies; refuses with 429 beyond the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.held_bytes = 0

    @contextmanager
    def request(self) -> Iterator[Hold]:
        """Room for one request and its body while the block runs.

        Raises:
            ApiError: 429, too many requests are under way.
        """
        if self.requests >= self.limits.max_requests:
            raise _saturated(f"This gateway runs {self.requests} requests, its limit.")
        self.requests += 1
        hold = Hold(self)
        try:
            yield hold
        finally:
            hold.release()
            self.requests -= 1

    def reserve(self, num_bytes: int) -> None:
        """Count bytes of a body that is being read.

        Raises:
            ApiError: 429, the bodies of all requests together are too large.
        """
        if self.held_bytes + num_bytes > self.limits.max_held_bytes:
            raise _saturated("This gateway holds as many request bodies as it may.")
        self.held_bytes += num_bytes


class Hold:
    """The bytes that one request's body takes."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Count more bytes; raises 429 as ``Admission.reserve``."""
        self._admission.reserve(num_bytes)
        self._num_bytes += num_bytes

    def release(self) -> None:
        """The body is sent or dropped. Safe to call twice."""
        self._admission.held_bytes -= self._num_bytes
        self._num_bytes = 0


def _saturated(why: str) -> ApiError:
    return ApiError(429, f"{why} Try again in a second.", "gateway_saturated", retry_after_s=1)
