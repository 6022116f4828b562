"""Hostile headers cost bounded time and memory, and end in facts or in an error of ours."""

from __future__ import annotations

import pytest

from support.header_fuzz import check, corpus, mutated

SEED, INPUTS = 20_261, 1200
_CORPUS = corpus()


@pytest.mark.parametrize("name", _CORPUS)
def test_every_claim_of_the_corpus_keeps_the_bounds(name: str) -> None:
    outcome = check(_CORPUS[name])
    assert (outcome.result == "facts") == name.startswith("shape "), outcome


def test_changed_headers_of_one_seed_keep_the_bounds() -> None:
    inputs = list(_CORPUS.values())
    outcomes = [
        check(mutated(SEED, number, inputs), is_weighed=number % 16 == 0)
        for number in range(INPUTS)
    ]
    results = {found.result for found in outcomes}
    assert results == {"facts", "InvalidModel", "Truncated", "UnsupportedFormat"}
