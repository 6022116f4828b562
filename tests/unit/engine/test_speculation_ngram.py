"""Prompt lookup."""

from __future__ import annotations

from terrace_runtime.engine.speculation.ngram import NO_GUESS, NgramIndex


def guess(tokens: list[int], count: int = 4) -> tuple[list[int], int]:
    """Tokens and strength that an index of all ``tokens`` proposes."""
    index = NgramIndex(1024)
    index.extend(tokens, len(tokens))
    return index.propose(tokens, count)


def test_what_followed_the_same_tokens_is_proposed() -> None:
    assert guess([9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 2, 3, 4, 5]) == ([6, 7, 8, 0], 4)


def test_the_longest_match_wins_over_a_later_shorter_one() -> None:
    tokens = [0, 1, 2, 3, 4, 50, 0, 0, 8, 3, 4, 60, 0, 0, 1, 2, 3, 4]
    assert guess(tokens, 1) == ([50], 4)


def test_the_latest_of_two_equal_matches_wins() -> None:
    tokens = [0, 0, 0, 1, 2, 50, 9, 9, 9, 7, 1, 2, 60, 8, 8, 8, 8, 1, 2]
    assert guess(tokens, 1) == ([60], 2)


def test_text_that_was_never_seen_gives_no_guess() -> None:
    assert guess(list(range(20))) == NO_GUESS


def test_a_few_tokens_give_no_guess() -> None:
    assert guess([1, 1, 1]) == NO_GUESS


def test_no_more_tokens_than_asked_for() -> None:
    assert guess([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4], 2)[0] == [5, 6]
    assert guess([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4], 0) == NO_GUESS


def test_a_copy_past_the_end_goes_on_with_what_it_wrote() -> None:
    assert guess([9, 9, 1, 2, 1, 2, 1, 2], 5)[0] == [1, 2, 1, 2, 1]


def test_an_index_grows_with_its_list_and_within_its_bound() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    index = NgramIndex(1024)
    assert index.extend(tokens, 5) == 5
    assert index.extend(tokens, 5) == 3
    assert index.extend(tokens, 5) == 0
    tokens += [3, 4, 5, 6]
    assert index.extend(tokens, 100) == 4
    assert index.propose(tokens, 2) == ([7, 8], 4)


def test_a_hash_that_two_ngrams_share_gives_no_wrong_guess() -> None:
    index = NgramIndex(1)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]
    index.extend(tokens, len(tokens))
    assert index.propose(tokens, 2) == NO_GUESS
