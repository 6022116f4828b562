"""Whatever the layout of a cache, cutting and joining are each other's inverse."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.kv_blocks import Shape, make_state, places_with, row_of, token_of
from terrace_runtime.kv.blob import StateLayout

_ROWS = st.tuples(st.integers(0, 40), st.integers(1, 40))


@st.composite
def _shapes(draw: st.DrawFn) -> Shape:
    num_layers = draw(st.integers(1, 5))
    keys = draw(st.lists(_ROWS, min_size=num_layers, max_size=num_layers))
    values = draw(st.lists(_ROWS, min_size=num_layers, max_size=num_layers))
    num_streams = draw(st.integers(1, 5))
    has_values = draw(st.booleans())
    return Shape(
        tuple(keys),
        tuple(values) if has_values else (),
        num_streams,
        draw(st.integers(0, num_streams - 1)),
        draw(st.booleans()),
    )


_IMAGES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 4)), max_size=4)


def _first(shape: Shape) -> Shape:
    return dataclasses.replace(shape, stream=0)


@given(_shapes(), _IMAGES, st.integers(1, 9), st.integers(1, 5), st.integers(0, 7), st.randoms())
def test_cut_and_join_give_the_state_back(
    shape: Shape,
    images: list[tuple[int, int, int]],
    block_tokens: int,
    num_blocks: int,
    num_more: int,
    chance: np.random.Generator,
) -> None:
    """Tokens beyond the last full block are in the state that is cut, not in the joined one."""
    positions = list(range(block_tokens * num_blocks + num_more))
    places = places_with(len(positions), images)
    shuffled = list(positions)
    chance.shuffle(shuffled)
    state = make_state(shape, shuffled, places=places)
    layout = StateLayout.read(state)
    assert layout.state_bytes(len(positions)) == state.nbytes
    assert layout.has_places == shape.has_places
    kept = shape.token_bytes + 16 * shape.has_places
    assert layout.block_bytes(block_tokens) == block_tokens * kept
    count = block_tokens * num_blocks
    joined = np.full(layout.state_bytes(count), 0xAA, np.uint8)
    layout.begin(joined, count)
    blocks = np.full((num_blocks, layout.block_bytes(block_tokens)), 0xBB, np.uint8)
    for index, block in enumerate(blocks):
        layout.cut(state, len(positions), index * block_tokens, block, block_tokens)
        layout.join(joined, count, index * block_tokens, block, block_tokens)
    expected = make_state(_first(shape), positions[:count], places=places)
    assert joined.tobytes() == expected.tobytes()
    again = np.zeros_like(blocks)
    for index, block in enumerate(again):
        layout.cut(joined, count, index * block_tokens, block, block_tokens)
    assert np.array_equal(again, blocks)


@given(_shapes(), _IMAGES, st.integers(1, 9), st.integers(1, 30), st.integers(1, 9), st.randoms())
def test_a_state_that_ends_inside_a_block_comes_back_whole(
    shape: Shape,
    images: list[tuple[int, int, int]],
    block_tokens: int,
    num_tokens: int,
    kept: int,
    chance: np.random.Generator,
) -> None:
    """The last block is cut short; of any block, fewer tokens may be joined than it holds."""
    positions = list(range(num_tokens))
    places = places_with(num_tokens, images)
    shuffled = list(positions)
    chance.shuffle(shuffled)
    state = make_state(shape, shuffled, places=places)
    layout = StateLayout.read(state)
    first_at = range(0, num_tokens, block_tokens)
    blocks = np.full((len(first_at), layout.block_bytes(block_tokens)), 0xBB, np.uint8)
    for at, block in zip(first_at, blocks, strict=True):
        count = min(block_tokens, num_tokens - at)
        layout.cut(state, num_tokens, at, block, block_tokens, count=count)
    wanted = num_tokens - min(kept, num_tokens) + 1
    joined = np.full(layout.state_bytes(wanted), 0xAA, np.uint8)
    layout.begin(joined, wanted)
    for at, block in zip(range(0, wanted, block_tokens), blocks, strict=False):
        count = min(block_tokens, wanted - at)
        layout.join(joined, wanted, at, block, block_tokens, count)
    expected = make_state(_first(shape), positions[:wanted], places=places)
    assert joined.tobytes() == expected.tobytes()


@given(_shapes(), st.integers(1, 9), st.integers(0, 1000))
def test_a_block_is_the_rows_of_its_tokens_tensor_by_tensor(
    shape: Shape, block_tokens: int, first: int
) -> None:
    state = make_state(shape, list(range(first, first + block_tokens)))
    layout = StateLayout.read(state)
    block = np.zeros(layout.block_bytes(block_tokens), np.uint8)
    layout.cut(state, block_tokens, 0, block, block_tokens, first_position=first)
    rows = [
        row_of(tensor, position, row_bytes)
        for tensor, (_, row_bytes) in enumerate(shape.keys + shape.values)
        for position in range(first, first + block_tokens)
    ]
    places = [
        struct.pack("<iiii", position, position, position, token_of(position))
        for position in range(first, first + block_tokens)
        if shape.has_places
    ]
    assert block.tobytes() == b"".join(rows + places)


@given(_IMAGES, st.integers(2, 30), st.data())
def test_cells_of_one_place_or_beyond_their_tokens_are_refused(
    images: list[tuple[int, int, int]], num_tokens: int, data: st.DataObject
) -> None:
    shape = Shape(has_places=True)
    places = places_with(num_tokens, images)
    at = data.draw(st.integers(0, num_tokens - 2))
    doubled = [*places[: at + 1], places[at], *places[at + 2 :]]
    late = [*places[:-1], (num_tokens, num_tokens, num_tokens)]
    below = [(-1, 0, 0), *places[1:]]
    layout = StateLayout.read(make_state(shape, [0]))
    block = np.zeros(layout.block_bytes(num_tokens), np.uint8)
    for wrong in (doubled, late, below):
        state = make_state(shape, list(range(num_tokens)), places=wrong)
        with pytest.raises(ValueError, match=r"place|positions"):
            layout.cut(state, num_tokens, 0, block, num_tokens)


@given(_shapes(), st.integers(1, 4), st.data())
def test_a_damaged_state_is_refused_or_read_within_bounds(
    shape: Shape, num_tokens: int, data: st.DataObject
) -> None:
    """Whatever 64 bits are turned, reading ends, and a layout that comes of it fits the bytes."""
    state = make_state(shape, list(range(num_tokens)))
    turned = data.draw(st.lists(st.integers(0, 8 * state.nbytes - 1), max_size=64))
    for bit in turned:
        state[bit // 8] ^= 1 << (bit % 8)
    try:
        layout = StateLayout.read(state)
    except ValueError:
        return
    assert layout.num_tensors in {layout.num_layers, 2 * layout.num_layers}
    assert layout.state_bytes(1) <= state.nbytes


@given(st.binary(max_size=200))
def test_bytes_at_random_are_no_state(noise: bytes) -> None:
    try:
        StateLayout.read(np.frombuffer(noise, np.uint8))
    except ValueError:
        return
    raise AssertionError("noise was taken for a state")
