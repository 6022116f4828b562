"""Which cell of a sequence's state is which token's: cells stand in any order.

Owns: the two kinds of cells that llama.cpp writes, and the order of their tokens. Does not own:
where cells stand in a state, or rows (``blob.py``). Pure.

A plain cell is {i32 position, u32 1, i32 sequence}. A model with positions of several numbers
(M-RoPE) has {i32 position, u32 1, i32 column, i32 row, i32 token, i32 sequence}: llama.cpp's
``llama_kv_cell_ext``. All rows of an image have one position there, so that (position, row, column)
is what ascends with the tokens; a text's three are equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL_BYTES: Final = 12
PLACED_CELL_BYTES: Final = 24
PLACE_BYTES: Final = 16
"""What a block keeps of a cell of the larger kind."""
PLACE: Final = (0, 2, 3, 4)
"""Which of its numbers those are: position, column, row, token."""
_BY_PLACE: Final = (0, 3, 2)


def cells_at(state: NDArray[np.uint8], at: int, num_tokens: int, cell_bytes: int) -> NDArray[Any]:
    """(cells, 3 or 6): position, number of sequences, (column, row, token,) sequence."""
    return np.ndarray((num_tokens, cell_bytes // 4), "<i4", state, at)


def order_by_position(
    positions: NDArray[Any], at_token: int, wanted: NDArray[Any]
) -> NDArray[np.intp] | slice:
    """The cells of the ``wanted`` positions, which ascend by one; a slice where they do too."""
    straight = slice(at_token, at_token + len(wanted))
    if np.array_equal(positions[straight], wanted):
        return straight
    found = np.flatnonzero((positions >= wanted[0]) & (positions <= wanted[-1]))
    order = found[np.argsort(positions[found])]
    if not np.array_equal(positions[order], wanted):
        raise ValueError(f"the state lacks positions of {wanted[0]}..{wanted[-1]}")
    return order


def order_by_place(
    cells: NDArray[Any], at_token: int, wanted: NDArray[Any]
) -> NDArray[np.intp] | slice:
    """The same of cells whose places ascend with the tokens, at most up to ``wanted``."""
    straight = slice(at_token, at_token + len(wanted))
    order: NDArray[np.intp] | slice = straight
    if not _ascend(cells):
        whole = np.lexsort(cells[:, _BY_PLACE[::-1]].T)
        if not _ascend(cells[whole]):
            raise ValueError("two cells of the state have one place")
        order = whole[straight]
    found = cells[order, 0]
    if found[0] < 0 or (found > wanted).any():
        raise ValueError(f"the state has no positions up to {wanted[0]}..{wanted[-1]}")
    return order


def _ascend(cells: NDArray[Any]) -> bool:
    position, row, column = np.diff(cells[:, _BY_PLACE], axis=0).T
    later = (row > 0) | ((row == 0) & (column > 0))
    return bool(((position > 0) | ((position == 0) & later)).all())
