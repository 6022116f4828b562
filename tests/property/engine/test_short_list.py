"""The candidates found first in a large vocabulary are all that top_k can choose from."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.backend.chain import top_candidates


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.integers(1, 60), st.booleans())
def test_the_likeliest_tokens_are_among_the_candidates(
    seed: int,
    size: int,
    count: int,
    coarse: bool,  # noqa: FBT001 - hypothesis calls it
) -> None:
    logits = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    if coarse:  # Many equal ones: any of them may be taken, as long as none is beaten.
        logits = np.round(logits)
    found = top_candidates(logits, count)
    assert len(set(found.tolist())) == len(found)
    best = np.sort(logits)[::-1][:count]
    assert (np.sort(logits[found])[::-1][:count] == best).all()


def test_they_are_few() -> None:
    logits = np.random.default_rng(0).standard_normal(151_936).astype(np.float32)
    assert len(top_candidates(logits, 40)) < 1500
