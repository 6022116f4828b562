"""How many lines of one talkative source get through: a token bucket that counts the rest.

Owns: the count. Does not own: clocks or lines. Pure. Next: ``child.py``, ``backend.llamalog``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RateGate:
    """Lets ``burst`` lines through at once and ``per_second`` of them in the long run."""

    def __init__(self, clock: Callable[[], float], burst: int, per_second: float) -> None:
        """``clock`` is in seconds and never goes back."""
        self._clock = clock
        self._burst = burst
        self._per_second = per_second
        self._tokens = float(burst)
        self._at = clock()
        self._held_back = 0

    def admits(self) -> bool:
        """Whether the next line may go out; one that may not is counted."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            self._held_back += 1
            return False
        self._tokens -= 1
        return True

    def take_held_back(self) -> int:
        """How many were held back since this was asked last."""
        count, self._held_back = self._held_back, 0
        return count
