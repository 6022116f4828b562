"""What was worked out from nodes alone, kept as long as the nodes are the same.

Owns: NodesMemo. Does not own: what is kept (``candidates.py``, ``device_rooms.py``). Callers give
the same tuple as long as no node changed and never change it; the answer is the same with and
without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from terrace.planner.nodes import NodeFacts

T = TypeVar("T")
MAX_ENTRIES = 4096


class NodesMemo(Generic[T]):
    """Answers for one sequence of nodes, by identity; another one starts anew."""

    def __init__(self) -> None:
        self._nodes: Sequence[NodeFacts] = ()
        self._found: dict[Hashable, T] = {}

    def get(self, nodes: Sequence[NodeFacts], key: Hashable, make: Callable[[], T]) -> T:
        """The answer for ``key``, made when these nodes never had one."""
        if nodes is not self._nodes or len(self._found) >= MAX_ENTRIES:
            self._nodes, self._found = nodes, {}
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]
