"""From tokens to llama.cpp's positions, where an image takes fewer of them than it has rows. Pure.

Owns: which positions the tokens of each sequence have. Does not own: evaluating (``llama.py``,
``embeddings.py``) or cells (``llama_cells.py``), which ask here. Everybody else counts tokens.

With positions of several numbers (M-RoPE) all rows of an image have one position, and what follows
goes on after its longer side (libmtmd's ``mtmd_image_tokens_get_n_pos``); without images a token's
index is its position. What a restored sequence has, the cells of its state say: the same as in
``kv/places.py``, which this layer cannot import.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from terrace_runtime.backend.projector import Grid

_HEAD: Final = struct.Struct("<IiI")
_WORD: Final = struct.Struct("<I")
_CELL_BYTES: Final = 24
_BY_PLACE: Final = (0, 3, 2)
"""Position, row, column of a cell."""


@dataclass
class _Image:
    """Rows that share a position."""

    start: int
    """The first one's token."""
    rows: int
    """Those that are there."""
    position: int
    span: int
    """Positions from its own to that of what follows."""

    @property
    def stop(self) -> int:
        return self.start + self.rows


class Positions:
    """Those of one sequence's tokens."""

    def __init__(self) -> None:
        self._images: list[_Image] = []

    @property
    def shift(self) -> int:
        """What is added to the index of a token that comes after all images."""
        if not self._images:
            return 0
        last = self._images[-1]
        return last.position + last.span - last.stop

    def of(self, token: int) -> int:
        """Where a token stands, or will."""
        image = self._before(token)
        if image is None:
            return token
        if token < image.stop:
            return image.position
        return image.position + image.span + token - image.stop

    def last_token(self, position: int) -> int:
        """The last token that stands at ``position``, the highest of the sequence."""
        index = bisect_right(self._images, position, key=attrgetter("position"))
        if not index:
            return position
        image = self._images[index - 1]
        after = position - image.position - image.span
        return image.stop + after if after >= 0 else image.stop - 1

    def is_inside(self, token: int) -> bool:
        """Whether a cut before ``token`` would part rows of one image."""
        image = self._before(token)
        return image is not None and image.start < token < image.stop

    def cut(self, token: int) -> None:
        """Forget the tokens from ``token`` on, which is not inside an image."""
        while self._images and self._images[-1].start >= token:
            self._images.pop()

    def add(self, start: int, rows: int, grid: Grid) -> None:
        """``rows`` more are there of the image whose first row is the token ``start``."""
        position = self.of(start)
        self.cut(start)
        self._images.append(_Image(start, rows, position, max(grid)))

    def take(self, other: Positions, start: int, stop: int, at: int) -> None:
        """Append the tokens from ``start`` to ``stop`` - 1 of ``other``, the first one as ``at``.

        ``stop`` is not inside an image; an image that goes on is one.
        """
        for image in other._images:
            if not start <= image.start < stop:
                continue
            token = at + image.start - start
            last = self._images[-1] if self._images else None
            if last is not None and (last.stop, last.position) == (token, image.position):
                last.rows += image.rows
                last.span = max(last.span, image.span)
            else:
                self._images.append(_Image(token, image.rows, image.position, image.span))

    @classmethod
    def read(cls, state: NDArray[np.uint8]) -> Positions:
        """Those of a state whose cells are of the larger kind, its first token being token 0."""
        found = cls()
        cells = _cells(state)
        order = np.lexsort(cells[:, _BY_PLACE[::-1]].T)
        position, row, column = cells[order][:, _BY_PLACE].T
        differs = np.diff(position, prepend=-1) != 0
        starts = np.flatnonzero(differs)
        alone = np.diff(starts, append=len(position)) == 1
        text = alone & (row[starts] == position[starts]) & (column[starts] == position[starts])
        bounds = [*starts.tolist(), len(position)]
        for index, (start, stop) in enumerate(pairwise(bounds)):
            if not text[index]:
                first = int(position[start])
                side = max(int(row[start:stop].max()), int(column[start:stop].max()))
                found._images.append(_Image(start, stop - start, first, side - first + 1))
        return found

    def _before(self, token: int) -> _Image | None:
        """The last image that begins before ``token`` or there."""
        index = bisect_right(self._images, token, key=attrgetter("start"))
        return self._images[index - 1] if index else None


class SlotPositions:
    """Of all sequences of a context."""

    def __init__(self, num_slots: int) -> None:
        self._slots = [Positions() for _ in range(num_slots)]
        self.shifts: NDArray[np.int32] = np.zeros(num_slots, np.int32)
        """By slot: what its next tokens have beyond their index."""
        self.is_shifted = False
        """Some of them differ from 0."""

    def __getitem__(self, slot: int) -> Positions:
        return self._slots[slot]

    def put(self, slot: int, positions: Positions) -> None:
        """A slot has others now."""
        self._slots[slot] = positions
        self.note(slot)

    def note(self, slot: int) -> None:
        """Those of a slot were changed."""
        self.shifts[slot] = self._slots[slot].shift
        self.is_shifted = bool(self.shifts.any())


def _cells(state: NDArray[np.uint8]) -> NDArray[Any]:
    """(cells, 6) of a state's one stream that has some; ValueError where it ends before."""
    try:
        _, _, streams = _HEAD.unpack_from(state.data, 0)
        for stream in range(streams):
            at = _HEAD.size + stream * _WORD.size
            (count,) = _WORD.unpack_from(state.data, at)
            if count:
                return np.ndarray((count, _CELL_BYTES // 4), "<i4", state, at + _WORD.size)
    except (struct.error, TypeError) as error:
        raise ValueError("the state ends inside its cells") from error
    return np.zeros((0, _CELL_BYTES // 4), np.int32)
