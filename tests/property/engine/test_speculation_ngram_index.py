"""The n-gram index against a search through the whole list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from terrace_runtime.engine.speculation.ngram import LONGEST, NgramIndex

TOKENS = st.lists(st.integers(0, 3), max_size=80)


def found_by_search(tokens: list[int], count: int) -> list[int]:
    """What followed the latest occurrence of the longest tail, copied as LZ77 does."""
    for size in range(LONGEST, 1, -1):
        for position in range(len(tokens) - 1, LONGEST - 1, -1):
            if len(tokens) > LONGEST and tokens[position - size : position] == tokens[-size:]:
                copied = list(tokens)
                for place in range(position, position + count):
                    copied.append(copied[place])
                return copied[len(tokens) :]
    return []


@given(TOKENS, st.integers(1, 8), st.lists(st.integers(1, 30)))
@settings(max_examples=300, deadline=None)
def test_a_large_index_finds_what_a_search_finds(
    tokens: list[int], count: int, slices: list[int]
) -> None:
    index = NgramIndex(2**14)
    for limit in slices:
        index.extend(tokens, limit)
    index.extend(tokens, len(tokens))
    # Few tokens make few n-grams, and these do not share a hash in so large a table.
    assert index.propose(tokens, count).tokens == found_by_search(tokens, count)


@given(TOKENS, st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_a_tiny_index_may_miss_but_never_invents(tokens: list[int], count: int) -> None:
    index = NgramIndex(4)
    index.extend(tokens, len(tokens))
    guess = index.propose(tokens, count)
    assert len(guess.tokens) in (0, count)
    if guess.tokens:
        tail = tokens[-guess.strength :]
        followers = [
            tokens[place]
            for place in range(guess.strength, len(tokens))
            if tokens[place - guess.strength : place] == tail
        ]
        assert guess.tokens[0] in followers
