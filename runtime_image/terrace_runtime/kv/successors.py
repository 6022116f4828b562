"""What comes after a KV block: so that a block is of use to prompts that share its first tokens.

Owns: the tokens of blocks that were saved lately, by the block before. Does not own: the blocks
(``store.py``), which a whole prompt finds by their keys alone. Pure. A prompt seldom leaves another
one at the end of a block, and a sequence seldom ends there: without this, half a block would be
computed anew each time. Next: ``store.py`` has one.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_SUCCESSORS = 8
"""Of one block, the newest: behind a prompt that thousands share, looking at all takes long."""


class Successors:
    """Blocks by the block before them, of as many of those as there is room for."""

    def __init__(self, max_parents: int) -> None:
        """The parents that were used longest ago are forgotten first."""
        self._max_parents = max_parents
        self._by_parent: OrderedDict[bytes, dict[bytes, array[int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_parent)

    def add(self, parent: bytes, key: bytes, tokens: Sequence[int]) -> None:
        """The block ``key`` holds ``tokens``, all of a block or less, which follow ``parent``."""
        following = self._by_parent.setdefault(parent, {})
        self._by_parent.move_to_end(parent)
        following.pop(key, None)
        following[key] = array("i", tokens)
        if len(following) > MAX_SUCCESSORS:
            del following[next(iter(following))]
        if len(self._by_parent) > self._max_parents:
            self._by_parent.popitem(last=False)

    def best(
        self, parent: bytes, tokens: Sequence[int], is_here: Callable[[bytes], bool]
    ) -> tuple[bytes, int] | None:
        """(key, count) of the block that begins with the most of ``tokens``; None: there is none.

        Blocks that are not ``is_here`` any more are forgotten.
        """
        following = self._by_parent.get(parent)
        if following is None:
            return None
        best: tuple[bytes, int] | None = None
        for key, theirs in list(following.items()):
            if not is_here(key):
                del following[key]
                continue
            count = _num_common(theirs, tokens)
            if count > (best[1] if best else 0):
                best = key, count
        if following:
            self._by_parent.move_to_end(parent)
        else:
            del self._by_parent[parent]
        return best


def _num_common(theirs: Sequence[int], ours: Sequence[int]) -> int:
    count = 0
    for one, other in zip(theirs, ours, strict=False):
        if one != other:
            break
        count += 1
    return count
