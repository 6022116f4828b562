"""The fake backend's KV cells: who holds what, in both layouts, and states as bytes.

Owns: cells that sequences share, and refusing what llama.cpp refuses. Does not own: what a cell's
token means for the answer (``fake.py``, which is this and more) or a state's format
(``fake_state.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import Backend, BackendError
from terrace_runtime.backend.fake_state import decode_state, encode_state

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Cell:
    """One token's keys and values; sequences that share it hold the same object."""

    __slots__ = ("position", "token")

    def __init__(self, token: int, position: int) -> None:
        self.token = token
        self.position = position


@dataclass
class FakeCells(Backend):
    """The part of the port that is about cells."""

    reuse: Literal["blocks", "checkpoints", "none"] = "blocks"
    """``checkpoints``: a sequence can only be dropped or restored as a whole."""
    reopen_errors: list[str] = field(default_factory=list)
    """What the next calls of ``reopen`` fail with."""
    reopened: int = 0
    """How often the layout changed."""
    state_copies: int = 0
    """How often a state was read or written."""
    _slots: int = 0
    _room: int = 0
    _is_unified: bool = False
    _cells: dict[int, list[Cell]] = field(default_factory=dict)

    @property
    def num_cells(self) -> int:
        """Cells in use; one that several sequences share counts once."""
        return len({id(cell) for cells in self._cells.values() for cell in cells})

    def tokens_of(self, slot: int) -> list[int]:
        """What the cells of ``slot`` hold: token ids, where no adapter computed them."""
        return [cell.token for cell in self._cells.get(slot, ())]

    @override
    def seq_rm(self, slot: int, start: int = 0) -> bool:
        cells = self._cells.setdefault(slot, [])
        if self.reuse != "blocks" and 0 < start < len(cells):
            return False
        del cells[start:]
        return True

    @override
    def seq_cp(self, source: int, target: int, start: int, stop: int) -> None:
        if self.scratch is None:
            raise BackendError("split KV cannot share cells between sequences")
        held = self._cells.setdefault(target, [])
        assert len(held) == start or target == self.scratch, "a gap in the target's positions"
        cells = self._cells.get(source, [])
        held.extend(cell for cell in cells if start <= cell.position < stop)

    @property
    @override
    def scratch(self) -> int | None:
        return self._slots if self._is_unified else None

    @property
    @override
    def is_unified(self) -> bool:
        return self._is_unified

    @override
    def reopen(self, *, unified: bool) -> None:
        self._cells.clear()
        if self.reopen_errors:
            raise BackendError(self.reopen_errors.pop(0))
        self.reopened += 1
        self._is_unified = unified

    @override
    def state_size(self, slot: int) -> int:
        return len(self._state(slot))

    @override
    def state_get(self, slot: int, buffer: NDArray[np.uint8]) -> int:
        self.state_copies += 1
        state = self._state(slot)
        if len(state) > buffer.nbytes:
            return 0
        buffer[: len(state)] = np.frombuffer(state, np.uint8)
        return len(state)

    @override
    def state_set(self, slot: int, state: NDArray[np.uint8]) -> bool:
        self.state_copies += 1
        self._cells[slot] = []
        cells = decode_state(state.tobytes(), self._num_streams)
        if cells is None or len(cells) + self.num_cells > self._room:
            return False
        self._cells[slot] = [Cell(token, position) for position, token in cells]
        return True

    @property
    def _num_streams(self) -> int:
        return 1 if self._is_unified else self._slots

    def _state(self, slot: int) -> bytes:
        stream = 0 if self._is_unified else slot
        cells = [(cell.position, cell.token) for cell in self._cells.get(slot, ())]
        return encode_state(slot, stream, self._num_streams, cells)

    @override
    def seq_pos_max(self, slot: int) -> int:
        return len(self._cells.get(slot, ())) - 1
