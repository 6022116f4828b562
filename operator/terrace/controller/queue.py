"""The work queue: which object is reconciled next, and when a failed one is tried again.

Owns: de-duplication, one in flight per item, per-item exponential backoff, the rate limit.
Does not own: what work is (``controller.py``). Clock and randomness are passed in, so that
``take`` and ``wait_s`` run in virtual time; ``get`` alone waits. Next: a worker reconciles.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How fast the queue may go."""

    backoff_s: float = 0.2
    """Delay after the first failure; doubles with each further one."""
    max_backoff_s: float = 300.0
    """Longest delay between two tries of a failing item."""
    rate_per_s: float = 200.0
    """Items taken per second over time."""
    burst: int = 400
    """Items taken at once after a quiet time."""


class WorkQueue(Generic[T]):
    """Items wait, are taken by one worker at a time, and end with ``done``.

    An item added while it is in flight is queued again at ``done``: no change is lost, and no item
    is ever worked on twice at the same time.
    """

    def __init__(
        self, clock: Callable[[], float], rng: Random, limits: QueueLimits | None = None
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._limits = limits or QueueLimits()
        self._ready: OrderedDict[T, float] = OrderedDict()
        self._urgent: OrderedDict[T, float] = OrderedDict()
        self._delayed: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._sequence = 0
        self._in_flight: set[T] = set()
        self._dirty: set[T] = set()
        self._failures: dict[T, int] = {}
        self._tokens = float(self._limits.burst)
        self._refilled_at = clock()
        self._wake = asyncio.Event()
        self.num_adds = 0
        self.num_retries = 0

    def __len__(self) -> int:
        return len(self._ready) + len(self._urgent)

    @property
    def num_in_flight(self) -> int:
        """Items that workers hold now."""
        return len(self._in_flight)

    @property
    def oldest_s(self) -> float:
        """How long the first ready item has waited; 0 when none does."""
        first = [next(iter(lane.values())) for lane in (self._urgent, self._ready) if lane]
        return max(0.0, self._clock() - min(first)) if first else 0.0

    def add(self, item: T, *, is_urgent: bool = False) -> None:
        """Queue the item now, unless it already waits.

        ``is_urgent``: before all that are not, for what a user has just asked for.
        """
        self.num_adds += 1
        if item in self._in_flight:
            self._dirty.add(item)
        elif is_urgent:
            self._urgent.setdefault(item, self._ready.pop(item, self._clock()))
        else:
            self._make_ready(item)
        self._wake.set()

    def add_after(self, item: T, delay_s: float) -> None:
        """Queue the item in ``delay_s`` seconds; of several pending delays the earliest counts."""
        due_at = self._clock() + max(0.0, delay_s)
        if self._delayed.get(item, due_at + 1) <= due_at:
            return
        self._delayed[item] = due_at
        self._sequence += 1
        heapq.heappush(self._heap, (due_at, self._sequence, item))
        self._wake.set()

    def retry(self, item: T) -> float:
        """Queue a failed item with its backoff, which is returned in seconds."""
        failures = self._failures.get(item, 0)
        self._failures[item] = failures + 1
        self.num_retries += 1
        # 2**30 times the base is beyond any ceiling; the cap keeps the power small.
        ceiling = min(self._limits.max_backoff_s, self._limits.backoff_s * 2.0 ** min(failures, 30))
        delay_s = ceiling * self._rng.uniform(0.8, 1.0)
        self.add_after(item, delay_s)
        return delay_s

    def forget(self, item: T) -> None:
        """The item succeeded: its next failure starts with the shortest backoff."""
        self._failures.pop(item, None)

    def take(self) -> T | None:
        """The next ready item, now in flight; None when nothing is ready or the rate is spent."""
        self._release_due()
        if not len(self) or not self._spend_token():
            return None
        item, _ = (self._urgent or self._ready).popitem(last=False)
        self._in_flight.add(item)
        return item

    def done(self, item: T) -> None:
        """Work on the item ended, however it went."""
        self._in_flight.discard(item)
        if item in self._dirty:
            self._dirty.discard(item)
            self._make_ready(item)
        self._wake.set()

    def wait_s(self) -> float | None:
        """Seconds until ``take`` may return something; None: not before something is added."""
        self._release_due()
        if len(self):
            missing = 1.0 - self._refill()
            return max(0.0, missing / self._limits.rate_per_s)
        if self._heap:
            return max(0.0, self._heap[0][0] - self._clock())
        return None

    async def get(self) -> T:
        """Wait for an item. Safe with any number of workers."""
        while True:
            # Nothing awaits between clear and take, so no wake-up is lost.
            self._wake.clear()
            item = self.take()
            if item is not None:
                return item
            # Not wait_for: before Python 3.12 it loses a cancellation that comes with a wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wait_s()):
                    await self._wake.wait()

    def _release_due(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due_at, _, item = heapq.heappop(self._heap)
            if self._delayed.get(item) != due_at:
                continue  # An earlier delay of the same item has replaced this entry.
            del self._delayed[item]
            if item in self._in_flight:
                self._dirty.add(item)
            else:
                self._make_ready(item)

    def _make_ready(self, item: T) -> None:
        if item not in self._ready and item not in self._urgent:
            self._ready[item] = self._clock()

    def _refill(self) -> float:
        now = self._clock()
        gained = (now - self._refilled_at) * self._limits.rate_per_s
        self._tokens = min(float(self._limits.burst), self._tokens + max(0.0, gained))
        self._refilled_at = now
        return self._tokens

    def _spend_token(self) -> bool:
        # The tolerance forgives the rounding of wait_s, or a worker would spin on 0.9999 tokens.
        if self._refill() < 1.0 - 1e-6:
            return False
        self._tokens -= 1.0
        return True
