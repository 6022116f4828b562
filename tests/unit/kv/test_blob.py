"""States are cut and joined byte for byte, and nothing but a state is taken for one."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.kv_blocks import BLOCK_TOKENS, Shape, make_state
from terrace_runtime.backend.fake_state import decode_state, encode_state
from terrace_runtime.kv.blob import StateLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_MIXED = Shape(
    keys=((8, 34), (1, 16), (1, 16)), values=((2, 18), (2, 18), (1, 6)), num_streams=4, stream=2
)


def _rebuilt(shape: Shape, positions: list[int]) -> NDArray[np.uint8]:
    """The state cut into blocks and joined again."""
    layout = StateLayout.read(make_state(shape, [0]))
    state = make_state(shape, positions)
    count = len(positions)
    joined = np.full(layout.state_bytes(count), 0xAA, np.uint8)
    layout.begin(joined, count)
    block = np.zeros(layout.block_bytes(BLOCK_TOKENS), np.uint8)
    for at in range(0, count, BLOCK_TOKENS):
        layout.cut(state, count, at, block, BLOCK_TOKENS)
        layout.join(joined, count, at, block, BLOCK_TOKENS)
    return joined


def test_joined_blocks_are_the_state_they_were_cut_from() -> None:
    count = 3 * BLOCK_TOKENS
    first_stream = Shape(_MIXED.keys, _MIXED.values, num_streams=4, stream=0)
    joined = _rebuilt(_MIXED, list(range(count)))
    assert joined.tobytes() == make_state(first_stream, list(range(count))).tobytes()


def test_cells_in_another_order_give_the_same_blocks() -> None:
    count = 3 * BLOCK_TOKENS
    shuffled = np.random.default_rng(3).permutation(count).tolist()
    straight = _rebuilt(Shape(), list(range(count)))
    assert _rebuilt(Shape(), shuffled).tobytes() == straight.tobytes()


def test_the_fake_backend_reads_what_is_joined() -> None:
    cells = [(position, 7 * position) for position in range(2 * BLOCK_TOKENS)]
    state = np.frombuffer(encode_state(3, 3, 4, cells), np.uint8)
    layout = StateLayout.read(state)
    joined = np.zeros(layout.state_bytes(len(cells)), np.uint8)
    layout.begin(joined, len(cells))
    block = np.zeros(layout.block_bytes(BLOCK_TOKENS), np.uint8)
    for at in range(0, len(cells), BLOCK_TOKENS):
        layout.cut(state, len(cells), at, block, BLOCK_TOKENS)
        layout.join(joined, len(cells), at, block, BLOCK_TOKENS)
    assert decode_state(joined.tobytes(), 4) == cells


def test_a_block_is_cut_from_the_middle_by_its_positions() -> None:
    layout = StateLayout.read(make_state(Shape(), [0]))
    whole = make_state(Shape(), list(range(4 * BLOCK_TOKENS)))
    part = make_state(Shape(), list(range(2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS)))
    blocks = [np.zeros(layout.block_bytes(BLOCK_TOKENS), np.uint8) for _ in range(2)]
    layout.cut(whole, 4 * BLOCK_TOKENS, 2 * BLOCK_TOKENS, blocks[0], BLOCK_TOKENS)
    layout.cut(part, BLOCK_TOKENS, 0, blocks[1], BLOCK_TOKENS, first_position=2 * BLOCK_TOKENS)
    assert np.array_equal(blocks[0], blocks[1])


def test_neighbours_of_one_kind_move_in_one_copy() -> None:
    assert len(StateLayout.read(make_state(Shape(), [0])).runs) == 1
    assert len(StateLayout.read(make_state(_MIXED, [0])).runs) == 4


def test_a_cache_of_keys_alone_is_fine() -> None:
    shape = Shape(values=())
    assert StateLayout.read(make_state(shape, [0])).token_bytes == shape.token_bytes


def _damaged(at: int, data: bytes) -> NDArray[np.uint8]:
    state = make_state(Shape(), list(range(BLOCK_TOKENS)))
    state[at : at + len(data)] = np.frombuffer(data, np.uint8)
    return state


_CELLS_AT = 16
_LAYERS_AT = _CELLS_AT + 12 * BLOCK_TOKENS
_HUGE = struct.pack("<I", 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("at", "data", "complaint"),
    [
        (0, b"GGUF", "mark"),
        (8, struct.pack("<I", 0), "streams"),
        (8, _HUGE, "streams"),
        (12, struct.pack("<I", 0), "cells"),
        (12, _HUGE, "cells"),
        (12, struct.pack("<I", BLOCK_TOKENS + 1), "."),
        (_CELLS_AT + 4, struct.pack("<I", 2), "one sequence"),
        (_LAYERS_AT, struct.pack("<I", 1), "transposed"),
        (_LAYERS_AT + 4, struct.pack("<I", 1), "layers"),
        (_LAYERS_AT + 4, _HUGE, "layers"),
        (_LAYERS_AT + 8, struct.pack("<i", -1), "type"),
        (_LAYERS_AT + 12, struct.pack("<Q", 0), "rows of 0"),
        (_LAYERS_AT + 12, struct.pack("<Q", 1 << 63), "rows of"),
        (_LAYERS_AT + 12, struct.pack("<Q", 13), "."),
    ],
)
def test_a_damaged_state_is_refused(at: int, data: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        StateLayout.read(_damaged(at, data))


def test_a_state_cut_short_or_grown_is_refused_at_every_length() -> None:
    state = make_state(_MIXED, [0, 1])
    for length in range(state.nbytes):
        with pytest.raises(ValueError, match=r"."):
            StateLayout.read(state[:length])
    with pytest.raises(ValueError, match=r"."):
        StateLayout.read(np.concatenate([state, np.zeros(4, np.uint8)]))


def test_tensors_are_bounded() -> None:
    shape = Shape(keys=((0, 1),) * 1500, values=((0, 1),) * 1500)
    with pytest.raises(ValueError, match="tensors"):
        StateLayout.read(make_state(shape, [0]))


def test_what_does_not_fit_is_refused() -> None:
    layout = StateLayout.read(make_state(Shape(), [0]))
    state = make_state(Shape(), list(range(BLOCK_TOKENS)))
    block = np.zeros(layout.block_bytes(BLOCK_TOKENS), np.uint8)
    refused: tuple[Callable[[], None], ...] = (
        lambda: layout.begin(state, BLOCK_TOKENS + 1),
        lambda: layout.begin(state, 0),
        lambda: layout.join(state, BLOCK_TOKENS, 1, block, BLOCK_TOKENS),
        lambda: layout.join(state, BLOCK_TOKENS, -1, block, BLOCK_TOKENS),
        lambda: layout.join(state, BLOCK_TOKENS, 0, block, BLOCK_TOKENS, BLOCK_TOKENS + 1),
        lambda: layout.join(state, BLOCK_TOKENS, 0, block, BLOCK_TOKENS, 0),
        lambda: layout.cut(state, BLOCK_TOKENS, 0, block[1:], BLOCK_TOKENS),
        lambda: layout.cut(state, BLOCK_TOKENS - 1, 0, block, BLOCK_TOKENS),
        lambda: layout.cut(state, BLOCK_TOKENS, 0, block, BLOCK_TOKENS, first_position=1),
    )
    for attempt in refused:
        with pytest.raises(ValueError, match=r"."):
            attempt()


def test_a_state_of_another_model_or_of_nothing_is_not_cut() -> None:
    layout = StateLayout.read(make_state(Shape(), [0]))
    block = np.zeros(layout.block_bytes(BLOCK_TOKENS), np.uint8)
    other = make_state(Shape(num_streams=2), list(range(BLOCK_TOKENS)))
    with pytest.raises(ValueError, match="no state of the model"):
        layout.cut(other, BLOCK_TOKENS, 0, block, BLOCK_TOKENS)
    empty = np.zeros(layout.state_bytes(BLOCK_TOKENS), np.uint8)
    layout.begin(empty, BLOCK_TOKENS)
    empty[12:16] = 0
    with pytest.raises(ValueError, match="empty"):
        layout.cut(empty, BLOCK_TOKENS, 0, block, BLOCK_TOKENS)
