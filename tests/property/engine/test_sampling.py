"""Which token comes next, and which numbers are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terrace_runtime.engine.request import InvalidRequestError, SamplingParams
from terrace_runtime.engine.sampling import (
    MAX_SEED,
    check_sampling,
    is_greedy,
    sample,
    sampler_settings,
)

FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class Fixed:
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
        check_sampling(SamplingParams(**{name: value}), 100)  # type: ignore[arg-type]
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
    ],
)
def test_only_temperature_0_without_penalties_is_an_argmax(
    params: SamplingParams, *, greedy: bool
) -> None:
    assert is_greedy(params) is greedy
