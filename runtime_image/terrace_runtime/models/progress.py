"""How far a fetch is: one JSON line each second at most, with rate and time left.

Owns: FetchProgress lines. Does not own: where the bytes come from. Next: the operator reads the
last line of the fetch pod's log while it downloads.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Literal

from terrace_runtime.contract import FetchProgress

if TYPE_CHECKING:
    from collections.abc import Callable

Stage = Literal["download", "verify", "inspect"]
_WINDOW_S = 15.0


class ProgressReporter:
    """Turns byte counts into FetchProgress values for ``emit``."""

    def __init__(
        self,
        emit: Callable[[FetchProgress], None],
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 1.0,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._interval_s = interval_s
        self._stage: Stage | None = None
        self._last = float("-inf")
        self._samples: deque[tuple[float, int]] = deque()
        self._heard: tuple[Stage, int, int] | None = None
        self._latest: FetchProgress | None = None

    def report(self, stage: Stage, done: int, total: int) -> None:
        """Note ``done`` of ``total`` bytes (0: unknown); a new stage is told at once."""
        now, self._heard = self._clock(), (stage, done, total)
        if stage != self._stage:
            self._stage = stage
            self._samples.clear()
        elif now - self._last < self._interval_s and done != total:
            return
        self._say(stage, done, total, now)

    def beat(self) -> None:
        """Say how things stand where nothing was heard lately: a stalled download must show."""
        now = self._clock()
        if self._heard is not None and now - self._last >= self._interval_s:
            self._say(*self._heard, now)

    def _say(self, stage: Stage, done: int, total: int, now: float) -> None:
        self._last = now
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_S:  # noqa: PLR2004 - a rate needs two samples
            self._samples.popleft()
        rate = self._rate()
        left = int((total - done) / rate) if rate and total >= done else None
        self._latest = FetchProgress(
            stage=stage,
            done_bytes=done,
            total_bytes=total,
            bytes_per_second=rate,
            seconds_left=left if total else None,
        )
        self._emit(self._latest)

    def repeat(self) -> None:
        """Say the last line again: it must stay the log's last one after other words."""
        if self._latest is not None:
            self._emit(self._latest)

    def _rate(self) -> int:
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return max(0, int((last - first) / (end - start))) if end > start else 0
