"""Whatever is guessed, everybody gets what they would get without."""

from __future__ import annotations

import random
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine_builders import CoreDriver, alone, random_request, runtime_config
from support.speculation import guessing, guessing_driver
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.engine.request import FinishReason


def check_cells(driver: CoreDriver) -> None:
    """Each running sequence's cells hold its tokens as far as they are computed, and no guess."""
    backend = driver.backend
    assert isinstance(backend, FakeBackend)
    for sequence in driver.core.running:
        assert sequence.slot is not None
        assert backend.tokens_of(sequence.slot) == sequence.tokens[: sequence.num_computed]
        assert not sequence.draft


@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(["ngram", "draft"]),
    max_tokens=st.integers(1, 8),
    parallel=st.integers(1, 5),
    is_unified=st.booleans(),
    draft_errors=st.sampled_from([1, 2, 5, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_guesses_change_no_answer(
    seed: int,
    mode: Literal["ngram", "draft"],
    max_tokens: int,
    parallel: int,
    *,
    is_unified: bool,
    draft_errors: int,
) -> None:
    chance = random.Random(seed)
    changes = {"parallel": parallel, "kv_unified": is_unified, "batch_tokens": 64}
    config = guessing(mode, max_tokens, **changes)
    driver = guessing_driver(config, FakeBackend(draft_errors=draft_errors))
    plain = runtime_config(**changes)
    requests = [random_request(str(number), chance) for number in range(chance.randint(1, 8))]
    arrivals = {request.id: chance.randrange(30) for request in requests}
    aborts = {one.id: chance.randrange(60) for one in requests if chance.random() < 0.3}
    for step in range(60):
        driver.submit(*(one for one in requests if arrivals[one.id] == step))
        for name, at in aborts.items():
            if at == step:
                driver.core.abort(name)
        driver.step()
        check_cells(driver)
    answers = driver.run()
    for request in requests:
        answer, expected = answers[request.id], alone(request, plain)
        if answer.finish is FinishReason.ABORT:
            # An abort may cut a character in two.
            assert expected.text.startswith(answer.text.rstrip("\ufffd"))
        else:
            assert answer.facts == expected.facts


@given(seed=st.integers(0, 2**32), cells=st.integers(80, 200))
@settings(max_examples=30, deadline=None)
def test_guesses_that_find_no_room_are_given_up_first(seed: int, cells: int) -> None:
    chance = random.Random(seed)
    changes = {"kv_unified": True, "kv_cells": cells, "parallel": 3}
    driver = guessing_driver(guessing("draft", 6, **changes), FakeBackend(kv_cells=cells))
    requests = [
        random_request(str(number), chance, max_tokens=20, priority=0) for number in range(4)
    ]
    driver.submit(*requests)
    answers = driver.run()
    for request in requests:
        expected = CoreDriver(runtime_config(**changes), FakeBackend(kv_cells=cells))
        expected.submit(request)
        assert answers[request.id].facts == expected.run()[request.id].facts
