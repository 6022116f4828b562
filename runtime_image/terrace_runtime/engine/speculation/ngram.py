"""Prompt lookup: what followed the last few tokens when they stood there before.

Owns: the index of one sequence's n-grams. Does not own: whether guessing pays (``controller.py``).
Pure. The idea is Saxena's "Prompt Lookup Decoding" (2023). The index is a direct-mapped table per
length, so its memory is fixed: a newer n-gram takes the place of an older one of the same hash, and
a look-up compares the tokens themselves. Next: ``sources.py`` asks one index per sequence.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

LONGEST = 4
"""Tokens of the longest n-gram; the shortest has two."""
_EMPTY = b"\xff\xff\xff\xff"


class Guess(NamedTuple):
    """Tokens that may come next; ``strength`` tells guesses of different trust apart."""

    tokens: list[int]
    strength: int


NO_GUESS = Guess([], 0)


class NgramIndex:
    """Where each n-gram of a growing list of tokens was last followed by something."""

    __slots__ = ("_four", "_mask", "_three", "_two", "num_indexed")

    def __init__(self, size: int) -> None:
        """``size`` (a power of two) entries for each length, four bytes each."""
        assert size & (size - 1) == 0, "the hash is cut with a mask"
        self._mask = size - 1
        self._two = array("i", _EMPTY * size)
        self._three = array("i", _EMPTY * size)
        self._four = array("i", _EMPTY * size)
        self.num_indexed = 0
        """Tokens of the list that were seen as the follower of an n-gram."""

    def extend(self, tokens: Seq[int], limit: int) -> int:
        """Index up to ``limit`` tokens that came to the list since; returns how many."""
        start = self.num_indexed
        stop = min(len(tokens), start + limit)
        mask = self._mask
        for position in range(max(start, LONGEST), stop):
            fourth, third, second, last = tokens[position - LONGEST : position]
            self._two[hash((second, last)) & mask] = position
            self._three[hash((third, second, last)) & mask] = position
            self._four[hash((fourth, third, second, last)) & mask] = position
        self.num_indexed = max(start, stop)
        return max(0, stop - start)

    def propose(self, tokens: Seq[int], max_tokens: int) -> Guess:
        """What followed the longest n-gram at the end of ``tokens``, at most ``max_tokens``."""
        length = len(tokens)
        if length <= LONGEST or max_tokens <= 0:
            return NO_GUESS
        for size, table in ((4, self._four), (3, self._three), (2, self._two)):
            tail = tuple(tokens[-size:])
            position = table[hash(tail) & self._mask]
            if size <= position < length and tuple(tokens[position - size : position]) == tail:
                return Guess(_copy(tokens, position, max_tokens), size)
        return NO_GUESS


def _copy(tokens: Seq[int], position: int, count: int) -> list[int]:
    """``count`` tokens from ``position``; past the end the copy reads what it wrote itself."""
    copied = list(tokens[position : position + count])
    period = len(tokens) - position
    while len(copied) < count:
        copied.append(copied[len(copied) - period])
    return copied
