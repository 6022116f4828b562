"""Positions of tokens between and in images, against a table that is written out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from support.kv_blocks import Shape, make_state, places_with
from terrace_runtime.backend.positions import Positions
from terrace_runtime.backend.projector import Grid

if TYPE_CHECKING:
    import numpy as np

IMAGES = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)), max_size=5)
"""(tokens of text before, columns, lines)."""


@dataclass
class Written:
    """The same as ``Positions``, token by token."""

    table: list[int]
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Tokens of each image: from, to before."""


def written(images: list[tuple[int, int, int]], after: int) -> tuple[Positions, Written]:
    """A sequence with these images and ``after`` tokens of text, built as the backend builds it."""
    positions, start, spans = Positions(), 0, []
    for before, columns, lines in images:
        start += before
        positions.add(start, columns * lines, Grid(columns, lines))
        spans.append((start, start + columns * lines))
        start += columns * lines
    table = [place[0] for place in places_with(start + after, images)]
    return positions, Written(table, spans)


@given(IMAGES, st.integers(1, 9))
def test_each_token_stands_where_the_table_says(
    images: list[tuple[int, int, int]], after: int
) -> None:
    positions, expected = written(images, after)
    assert [positions.of(token) for token in range(len(expected.table))] == expected.table
    last = len(expected.table) - 1
    assert last + positions.shift == expected.table[last]
    for token, position in enumerate(expected.table[:-1]):
        if expected.table[token + 1] != position:
            assert positions.last_token(position) == token
    inside = {token for start, stop in expected.spans for token in range(start + 1, stop)}
    assert {token for token in range(last + 1) if positions.is_inside(token)} == inside


@given(IMAGES, st.integers(1, 9), st.data())
def test_an_image_may_come_in_parts(
    images: list[tuple[int, int, int]], after: int, data: st.DataObject
) -> None:
    whole, expected = written(images, after)
    parts = Positions()
    for (start, stop), (_, columns, lines) in zip(expected.spans, images, strict=True):
        cuts = data.draw(st.lists(st.integers(1, stop - start), max_size=3))
        for count in sorted({*cuts, stop - start}):
            parts.add(start, count, Grid(columns, lines))
            assert parts.last_token(parts.of(start)) == start + count - 1
    tokens = range(len(expected.table))
    assert [parts.of(token) for token in tokens] == [whole.of(token) for token in tokens]


@given(IMAGES, st.integers(1, 9), st.data())
def test_what_is_cut_off_is_forgotten(
    images: list[tuple[int, int, int]], after: int, data: st.DataObject
) -> None:
    positions, expected = written(images, after)
    whole = [t for t in range(len(expected.table)) if not positions.is_inside(t)]
    kept = data.draw(st.sampled_from(whole))
    positions.cut(kept)
    assert [positions.of(token) for token in range(kept)] == expected.table[:kept]
    assert kept + positions.shift == positions.of(kept) == expected.table[kept]


@given(IMAGES, st.integers(1, 9), st.randoms())
def test_a_state_says_what_its_sequence_has(
    images: list[tuple[int, int, int]], after: int, chance: np.random.Generator
) -> None:
    """Cells stand in any order."""
    _, expected = written(images, after)
    count = len(expected.table)
    order = list(range(count))
    chance.shuffle(order)
    shape = Shape(has_places=True, num_streams=3, stream=1)
    state = make_state(shape, order, places=places_with(count, images))
    found = Positions.read(state)
    assert [found.of(token) for token in range(count)] == expected.table
    assert count - 1 + found.shift == expected.table[-1]
    assert found.last_token(expected.table[-1]) == count - 1


@given(IMAGES, st.integers(1, 9), st.integers(1, 9))
def test_a_sequence_that_comes_back_slice_by_slice_has_what_it_had(
    images: list[tuple[int, int, int]], after: int, length: int
) -> None:
    """A slice may begin and end inside an image."""
    _, expected = written(images, after)
    places = places_with(len(expected.table), images)
    found = Positions()
    for start in range(0, len(places), length):
        part = places[start : start + length]
        state = make_state(Shape(has_places=True), range(len(part)), places=part)
        found.take(Positions.read(state), 0, len(part), start)
        assert found.last_token(part[-1][0]) == start + len(part) - 1
    assert [found.of(token) for token in range(len(places))] == expected.table
    assert len(places) - 1 + found.shift == expected.table[-1]


@given(IMAGES, st.integers(1, 9), st.data())
def test_a_prefix_that_is_shared_has_the_same_positions(
    images: list[tuple[int, int, int]], after: int, data: st.DataObject
) -> None:
    positions, expected = written(images, after)
    whole = [t for t in range(len(expected.table)) if not positions.is_inside(t)]
    count = data.draw(st.sampled_from(whole))
    found = Positions()
    found.take(positions, 0, count, 0)
    assert [found.of(token) for token in range(count)] == expected.table[:count]
    assert found.of(count) == expected.table[count]
