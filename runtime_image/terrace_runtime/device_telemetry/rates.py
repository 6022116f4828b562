"""From counters to rates: what a device used since the look before.

Owns: the last value of each counter. Does not own: reading them. Next: ``sysfs.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Rates:
    """Remembers one value per file."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` is in seconds and never goes back."""
        self._clock = clock
        self._last: dict[Path, tuple[float, int]] = {}

    def per_second(self, counter: Path, value: int | None) -> float | None:
        """Growth per second since the last look; None at the first one and after a reset."""
        if value is None:
            self._last.pop(counter, None)
            return None
        now = self._clock()
        at, before = self._last.get(counter, (now, value))
        self._last[counter] = (now, value)
        return (value - before) / (now - at) if now > at and value >= before else None
