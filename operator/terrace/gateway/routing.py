"""Which ready endpoint takes a request: the one with the fewest in flight.

Owns: the in-flight counts and the short memory of endpoints that refused a connection. Does not
own: the list of endpoints (``registry.py``) or the connection (``proxy.py``). Pure: clock and
randomness are passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from random import Random

    from terrace.gateway.registry import Endpoint

SKIP_S = 2.0
"""Seconds an endpoint is skipped after a failed connection; about a readiness probe's period."""


class Router:
    """Least in flight, random among equals, so that several gateways do not move in step."""

    def __init__(self, rng: Random, clock: Callable[[], float], skip_s: float = SKIP_S) -> None:
        """``clock`` is monotonic, in seconds."""
        self._rng = rng
        self._clock = clock
        self._skip_s = skip_s
        self._in_flight: dict[Endpoint, int] = {}
        self._skipped_until: dict[Endpoint, float] = {}

    def pick(
        self, endpoints: Sequence[Endpoint], tried: Collection[Endpoint] = ()
    ) -> Endpoint | None:
        """The endpoint to try next, or None when all were tried.

        One that failed a moment ago is taken only if there is no other: trying it costs less than
        refusing a request that it might have served.
        """
        left = [endpoint for endpoint in endpoints if endpoint not in tried]
        healthy = [endpoint for endpoint in left if not self._is_skipped(endpoint)]
        candidates = healthy or left
        if not candidates:
            return None
        fewest = min(self._in_flight.get(endpoint, 0) for endpoint in candidates)
        return self._rng.choice([e for e in candidates if self._in_flight.get(e, 0) == fewest])

    def started(self, endpoint: Endpoint) -> None:
        """A request is on its way to ``endpoint``; call ``finished`` exactly once."""
        self._in_flight[endpoint] = self._in_flight.get(endpoint, 0) + 1

    def finished(self, endpoint: Endpoint) -> None:
        """That request ended, however it did."""
        left = self._in_flight[endpoint] - 1
        assert left >= 0
        if left:
            self._in_flight[endpoint] = left
        else:
            del self._in_flight[endpoint]

    def failed(self, endpoint: Endpoint) -> None:
        """``endpoint`` could not be connected to: skip it for a moment."""
        now = self._clock()
        self._skipped_until = {e: t for e, t in self._skipped_until.items() if t > now}
        self._skipped_until[endpoint] = now + self._skip_s

    def in_flight(self, endpoint: Endpoint) -> int:
        """Requests that run on ``endpoint`` now."""
        return self._in_flight.get(endpoint, 0)

    def _is_skipped(self, endpoint: Endpoint) -> bool:
        until = self._skipped_until.get(endpoint)
        return until is not None and until > self._clock()
