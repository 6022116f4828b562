"""Whether moving blocks back is faster than computing them again, by what was measured.

Owns: the rates of restoring and of prefill, and the comparison. Does not own: measuring them
(``engine.prefix``; the disk times its own reads) or where blocks lie (``store.py``). Pure: the
clock is passed in. Next: ``KvStore.policy`` is the one that the engine feeds and asks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE_S = 60.0
"""What lost is tried again after so long: a slow disk may have been a busy one."""
_WEIGHT = 0.3
"""Of the newest observation."""


class Rate:
    """A moving average of amounts per second.

    It averages logarithms, so that a rate which fell to a hundredth and one which rose a
    hundredfold are both believed after the same few observations.
    """

    def __init__(self) -> None:
        self._log: float | None = None

    @property
    def per_second(self) -> float:
        """0: nothing was measured yet."""
        return 0.0 if self._log is None else math.exp(self._log)

    def add(self, amount: float, seconds: float) -> None:
        """So much took so long; what took no time or moved nothing tells nothing."""
        if amount > 0 and seconds > 0:
            newest = math.log(amount / seconds)
            old = newest if self._log is None else self._log
            self._log = old + _WEIGHT * (newest - old)


class RestorePolicy:
    """Compares. What was not measured yet counts as fast, so that it comes to be measured."""

    def __init__(
        self,
        clock: Callable[[], float],
        disk_bytes_per_second: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """``disk_bytes_per_second``: the disk's own moving average; 0: nothing was read yet."""
        self._clock = clock
        self._disk_rate = disk_bytes_per_second
        self._host = Rate()
        self._prefill = Rate()
        self._lost_at: float | None = None
        self._probing: tuple[float, float] | None = None
        """The rates when a probe began; it ends with the first new one."""

    @property
    def restore_bytes_per_second(self) -> float:
        """Host memory to the device; 0: nothing was measured yet."""
        return self._host.per_second

    @property
    def prefill_tokens_per_second(self) -> float:
        """0: nothing was measured yet."""
        return self._prefill.per_second

    def observe_restore(self, num_bytes: int, seconds: float) -> None:
        """Blocks were joined and put back into the device's cells."""
        self._host.add(num_bytes, seconds)

    def observe_prefill(self, num_tokens: int, seconds: float) -> None:
        """Prompt tokens were computed."""
        self._prefill.add(num_tokens, seconds)

    def worth_restoring(
        self, num_tokens_host: int, num_tokens_disk: int, bytes_per_token: int
    ) -> bool:
        """Blocks of so many tokens in each tier come back sooner than they are computed.

        Where the answer is no with the disk's blocks, it may still be yes without them.
        """
        num_tokens = num_tokens_host + num_tokens_disk
        if num_tokens <= 0:
            return False
        host, disk, prefill = self._host.per_second, self._disk_rate(), self._prefill.per_second
        if not prefill:
            return True
        seconds = _seconds(num_tokens * bytes_per_token, host)
        seconds += _seconds(num_tokens_disk * bytes_per_token, disk)
        if seconds < num_tokens / prefill:
            return True
        return self._is_probe((host, disk))

    def _is_probe(self, rates: tuple[float, float]) -> bool:
        """Once in a while say yes to what would lose, until that was measured again."""
        if self._probing == rates:
            return True
        now = self._clock()
        if self._probing is not None or self._lost_at is None:
            self._probing, self._lost_at = None, now
        elif now - self._lost_at >= PROBE_S:
            self._probing = rates
        return self._probing is not None


def _seconds(num_bytes: float, per_second: float) -> float:
    return num_bytes / per_second if per_second else 0.0
