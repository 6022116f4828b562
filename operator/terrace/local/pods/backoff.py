"""Crash back-off as kubelet does it. Pure: times are passed in.

The first restart is immediate, the second waits ``base_s``, each further one twice as long up to
``max_s``; after ``2 * max_s`` without a restart the count starts again.
Source: kubelet's doBackOff over client-go's util/flowcontrol Backoff.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BASE_S = 10.0
DEFAULT_MAX_S = 300.0


@dataclass
class Backoff:
    """The back-off of one container (or of one image pull)."""

    base_s: float = DEFAULT_BASE_S
    max_s: float = DEFAULT_MAX_S
    _wait_s: float = 0.0
    _last: float | None = None

    def after(self, ended: float) -> float:
        """Seconds to wait after an end at ``ended`` before the next start; counts that start."""
        if self._last is not None and ended - self._last > 2 * self.max_s:
            self._wait_s = 0.0
        wait_s = self._wait_s
        self._wait_s = min(max(2 * wait_s, self.base_s), self.max_s)
        self._last = ended + wait_s
        return wait_s
