"""Which requests are too old, by the engine's clock.

Owns: the order of deadlines. Does not own: what happens to a late request (``core.py``). Pure.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from terrace_runtime.engine.sequence import Sequence

_MAX_STALE = 1024
"""Deadlines of ended requests that may be left in the heap before it is made anew."""


class Deadlines:
    """Deadlines of open requests; those of ended ones are dropped along the way."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []

    def add(self, sequence: Sequence) -> None:
        """Watch ``sequence.deadline``."""
        heappush(self._heap, _entry(sequence))

    def passed(self, now: float, open_ones: Mapping[str, Sequence]) -> Iterator[Sequence]:
        """Those of ``open_ones`` (by id) whose deadline is over, each once."""
        while self._heap and self._heap[0][0] <= now:
            _, order, request_id = heappop(self._heap)
            sequence = open_ones.get(request_id)
            if sequence is not None and sequence.order == order:
                yield sequence
        if len(self._heap) > 2 * len(open_ones) + _MAX_STALE:
            self._heap = [_entry(one) for one in open_ones.values()]
            heapify(self._heap)


def _entry(sequence: Sequence) -> tuple[float, int, str]:
    return sequence.deadline, sequence.order, sequence.id
