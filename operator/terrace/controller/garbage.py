"""When Python looks through all objects for garbage: at rest, and not while a user waits.

Owns: that decision. Does not own: what is at rest (``queue.py``). With a thousand models cached a
full pass stops everything for a tenth of a second, twice that on a busy node, and Python begins one
in the middle of a burst of changes, for that is when objects are made. What outlives a pass at rest
is set aside (``gc.freeze``), so that the next one looks at what came since. What was set aside and
is let go of later is freed as everything is, by its reference count; cycles among it wait for the
pass over everything, once an hour.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 1.0
"""How often it looks whether there is rest."""
REST_S = 2.0
"""So long nothing was reconciled: a burst is over."""
BUSY_S = 60.0
"""Without any rest there is a pass at last after so long."""
QUIET_S = 600.0
"""Nor do events that nothing follows from pile up for longer than this."""
ALL_S = 3600.0
YOUNG, MIDDLE = 5_000, 20
"""Passes over what is new are short and stay automatic: after so many objects, and every so many
of those over what outlived one. The pass over everything is ours."""
NEVER = 1_000_000_000


class Collector(Protocol):
    """What of Python's module ``gc`` is used."""

    def collect(self) -> int:
        """Look through all that is not set aside."""
        ...

    def freeze(self) -> None:
        """Set all there is aside."""
        ...

    def unfreeze(self) -> None:
        """Set nothing aside."""
        ...


class Rest:
    """Tells a collector when to look. One per process."""

    def __init__(self, clock: Callable[[], float], collector: Collector = gc) -> None:
        self._clock = clock
        self._collector = collector
        self._worked_at = self._passed_at = self._all_at = clock()
        self._has_worked = True

    def look(self, *, is_idle: bool) -> None:
        """Collect if it is time; ``is_idle``: nothing is queued or under way."""
        now = self._clock()
        if not is_idle:
            self._worked_at, self._has_worked = now, True
        is_at_rest = now - self._worked_at >= REST_S
        resting_bound_s = 0.0 if self._has_worked else QUIET_S
        bound_s = resting_bound_s if is_at_rest else BUSY_S
        if now - self._passed_at >= bound_s:
            self._pass(now, of_all=is_at_rest and now - self._all_at >= ALL_S)
            self._has_worked = not is_at_rest

    def _pass(self, now: float, *, of_all: bool) -> None:
        if of_all:
            self._collector.unfreeze()
            self._all_at = now
        self._collector.collect()
        self._collector.freeze()
        self._passed_at = now


async def collect_at_rest(clock: Callable[[], float], is_idle: Callable[[], bool]) -> None:
    """Look for ever; from here on Python begins no full pass by itself."""
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    rest = Rest(clock)
    while True:
        await asyncio.sleep(LOOK_S)
        rest.look(is_idle=is_idle())
