"""Of what is remembered, the block that begins with the most of a prompt's next tokens is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.kv.keys import block_keys, short_key
from terrace_runtime.kv.successors import MAX_SUCCESSORS, Successors

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
_PARENTS = st.sampled_from([b"a", b"b", b"c"])


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


@given(
    st.lists(st.tuples(_PARENTS, _TOKENS), max_size=MAX_SUCCESSORS), _PARENTS, _TOKENS, st.data()
)
def test_the_longest_beginning_is_found_among_those_that_are_still_here(
    added: list[tuple[bytes, list[int]]], parent: bytes, wanted: list[int], data: st.DataObject
) -> None:
    found = Successors(3)
    here = {}
    for before, tokens in added:
        key = short_key(before, tokens)
        found.add(before, key, tokens)
        if data.draw(st.booleans()):
            here[key] = before, tokens
        else:
            here.pop(key, None)
    longest = max((common(t, wanted) for p, t in here.values() if p == parent), default=0)
    best = found.best(parent, wanted, here.__contains__)
    if not longest:
        assert best is None
        return
    assert best is not None
    key, count = best
    assert count == longest
    assert here[key][0] == parent
    assert common(here[key][1], wanted) == count


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), _TOKENS), max_size=60))
def test_no_more_is_remembered_than_there_is_room_for(added: list[tuple[bytes, list[int]]]) -> None:
    found = Successors(4)
    for parent, tokens in added:
        found.add(parent, short_key(parent, tokens), tokens)
        assert len(found) <= 4
        assert found.best(parent, tokens, lambda _: True) is not None


def test_a_block_has_few_successors_the_newest_ones() -> None:
    found = Successors(1)
    for token in range(MAX_SUCCESSORS + 3):
        found.add(b"parent", bytes([token]), [token])
    known = [found.best(b"parent", [token], lambda _: True) for token in range(MAX_SUCCESSORS + 3)]
    assert known[:3] == [None] * 3
    assert None not in known[3:]


@given(_TOKENS, _TOKENS, st.integers(1, 4))
def test_a_short_block_has_the_key_of_no_other_one(
    one: list[int], other: list[int], block_tokens: int
) -> None:
    keys = {short_key(b"root", one), short_key(b"root", other)}
    assert len(keys) == 1 + (one != other)
    full = block_keys(b"root", [*one, *other], block_tokens)
    assert (short_key(b"root", one) in full) == (len(one) == block_tokens)
