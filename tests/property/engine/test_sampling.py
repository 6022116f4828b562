"""Which token comes next, and which numbers are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terrace_runtime.backend import Grammar, SamplerChain
from terrace_runtime.engine.request import InvalidRequestError, SamplingParams
from terrace_runtime.engine.sampling import (
    BOUNDS,
    MAX_SEED,
    check_sampling,
    is_greedy,
    sample,
    sampler_settings,
)

FIELDS = tuple(name for name, _, _ in BOUNDS)


class Fixed(SamplerChain):
    """A chain that always takes its row's number."""

    def sample(self, row: int) -> int:
        return 1000 + row

    def close(self) -> None:
        """Nothing to free."""


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(-9, 9, width=32),
    ),
    st.data(),
)
def test_greedy_rows_take_their_likeliest_token_and_others_their_chain(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]], data: st.DataObject
) -> None:
    count = logits.shape[0]
    sampled = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    rows = list(range(10, 10 + count))
    tokens = sample(logits, rows, [Fixed() if one else None for one in sampled])
    expected = [
        1000 + rows[index] if sampled[index] else int(logits[index].argmax())
        for index in range(count)
    ]
    assert tokens == expected


@given(st.sampled_from(FIELDS), st.sampled_from([float("nan"), float("inf"), -1e9, 1e9]))
def test_a_number_out_of_bounds_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        check_sampling(SamplingParams(**{name: value}), 100)  # type: ignore[arg-type] # any field
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"logit_bias": ((100, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, float("nan")),)}, "logit_bias"),
        ({"logit_bias": ((1, 100.5),)}, "logit_bias"),
        ({"logit_bias": ((1, 1.0),) * 1025}, "logit_bias"),
        ({"dry_sequence_breakers": ("x",) * 17}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ("é" * 21,)}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ("a\0b",)}, "dry_sequence_breakers"),
        ({"logprobs": 21}, "logprobs"),
        ({"ignore_eos": True, "grammar": Grammar("regex", "a")}, "ignore_eos"),
    ],
)
def test_what_the_bounds_of_numbers_do_not_catch_is_refused_by_name(
    changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        check_sampling(SamplingParams(**changes), 100)
    assert caught.value.param == name


def test_the_defaults_are_accepted() -> None:
    check_sampling(SamplingParams(), 100)


@given(st.integers(-(2**70), 2**70))
def test_any_seed_becomes_one_that_llama_cpp_repeats(seed: int) -> None:
    settings = sampler_settings(SamplingParams(seed=seed), drawn_seed=0)
    assert 0 <= settings.seed <= MAX_SEED


@pytest.mark.parametrize(
    ("params", "greedy"),
    [
        (SamplingParams(temperature=0), True),
        (SamplingParams(temperature=0, repeat_penalty=1.1), False),
        (SamplingParams(temperature=0, presence_penalty=0.5), False),
        (SamplingParams(temperature=0, frequency_penalty=0.5), False),
        (SamplingParams(temperature=0.1), False),
        (SamplingParams(temperature=0, repeat_penalty=1.1, repeat_last_n=0), True),
        (SamplingParams(temperature=0, dry_multiplier=0.5), False),
        (SamplingParams(temperature=0, dry_multiplier=0.5, dry_penalty_last_n=0), True),
        (SamplingParams(temperature=0, xtc_probability=0.5), False),
        (SamplingParams(temperature=0, xtc_probability=0.5, xtc_threshold=0.6), True),
        (SamplingParams(temperature=0, logit_bias=((1, 1.0),)), False),
        (SamplingParams(temperature=0, grammar=Grammar("regex", "a")), False),
        (SamplingParams(temperature=0, typical_p=0.5, top_k=5, min_p=0.5, logprobs=3), True),
    ],
)
def test_only_temperature_0_with_nothing_else_is_an_argmax(
    params: SamplingParams, *, greedy: bool
) -> None:
    assert is_greedy(params) is greedy
