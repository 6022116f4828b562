"""Likeliest tokens found in llama.cpp's graph: the answers are what they are without."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.engine_builders import (
    CoreDriver,
    answer_of,
    conversations,
    random_request,
    runtime_config,
    text_request,
)
from support.sampling_reference import distribution
from terrace_runtime.backend import DECODE_OK, Grammar, SamplerSettings
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.backend.shortlist import SIZE
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import Request, SamplingParams
from terrace_runtime.engine.shortlisting import QUIET_S, needs_whole_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTINGS = SamplerSettings(
    temperature=0.8,
    top_k=40,
    top_p=0.95,
    min_p=0.02,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=7,
)
CHAINS = {
    "defaults": SETTINGS,
    "all of them": replace(SETTINGS, top_k=SIZE, top_p=1.0, min_p=0.0, temperature=1.3),
    "typical": replace(SETTINGS, typical_p=0.7),
    "xtc": replace(SETTINGS, xtc_probability=0.5, xtc_threshold=0.05),
    "xtc at temperature 0": replace(
        SETTINGS, temperature=0, xtc_probability=1.0, xtc_threshold=0.05
    ),
}
PROMPT = "The numbers are 1, 2, 3, 1, 2, 3"
DRAWS = 2000


@cache
def real() -> LlamaBackend:
    backend = LlamaBackend()
    backend.load(runtime_config(threads=1, device_sampling="on"))
    return backend


def rows_of(backend: LlamaBackend, *, on: bool) -> list[int]:
    """Batch rows of two sequences after one decode."""
    assert backend.shortlist is not None
    backend.shortlist.switch(on=on)
    tokens = backend.tokenize(PROMPT, special=False, add_bos=False)
    for slot in range(2):
        backend.seq_rm(slot)
    backend.batch.clear()
    rows = [backend.batch.extend(tokens[: -1 - slot], slot, 0, outputs=1) for slot in range(2)]
    assert backend.decode() == DECODE_OK
    return rows


def test_a_row_holds_the_likeliest_tokens_with_the_models_own_logits() -> None:
    backend = real()
    rows_of(backend, on=False)
    whole = backend.logits().copy()
    rows = rows_of(backend, on=True)
    assert backend.shortlist is not None
    for row, logits in zip(rows, whole, strict=True):
        tokens, few = backend.shortlist.row(row)
        assert tokens.tolist() == sorted(np.argsort(-logits, kind="stable")[:SIZE].tolist())
        assert np.array_equal(few, logits[tokens])
        assert int(tokens[few.argmax()]) == int(logits.argmax())


@pytest.mark.parametrize("name", CHAINS)
def test_a_seed_draws_the_same_tokens_on_both_paths(name: str) -> None:
    backend = real()
    drawn = [draws(backend, CHAINS[name], on=on) for on in (False, True, True)]
    assert drawn[0] == drawn[1] == drawn[2]
    expected = distribution(whole_logits(backend), CHAINS[name], (), ())
    found = np.bincount(drawn[1], minlength=expected.size) / DRAWS
    assert not found[expected == 0].any(), "a token was drawn that cannot be"
    assert np.abs(found - expected).sum() / 2 < 0.08


def whole_logits(backend: LlamaBackend) -> NDArray[np.float32]:
    rows_of(backend, on=False)
    row: NDArray[np.float32] = backend.logits()[0].copy()
    return row


def draws(backend: LlamaBackend, settings: SamplerSettings, *, on: bool) -> list[int]:
    row = rows_of(backend, on=on)[0]
    chain = backend.sampler(settings, ())
    found = [chain.sample(row) for _ in range(DRAWS)]
    chain.close()
    return found


async def test_answers_of_a_mixed_crowd_are_those_of_the_host() -> None:
    host = await answers_of("off", at_once=False)
    assert await answers_of("on", at_once=False) == host
    together = await answers_of("on", at_once=True)
    greedy = [name for name in together if name.startswith("greedy")]
    assert {name: together[name] for name in greedy} == {name: host[name] for name in greedy}


@pytest.mark.parametrize(
    "changes",
    [{"kv_unified": True}, {"speculation": {"mode": "ngram", "max_tokens": 4}}],
    ids=["unified", "guessing"],
)
async def test_answers_are_the_same_in_unified_cells_and_with_guesses(
    changes: dict[str, Any],
) -> None:
    host = await answers_of("off", at_once=False, **changes)
    assert await answers_of("on", at_once=False, **changes) == host


async def answers_of(device_sampling: str, *, at_once: bool, **changes: Any) -> dict[str, str]:
    config = runtime_config(
        context_tokens=512, threads=1, device_sampling=device_sampling, **changes
    )
    engine = InProcessEngine(config, LlamaBackend())
    await engine.start()
    requests = crowd()
    if at_once:
        answers = await asyncio.gather(*(answer_of(engine, one) for one in requests))
    else:
        answers = [await answer_of(engine, one) for one in requests]
    await engine.close()
    return {one.id: answer.text for one, answer in zip(requests, answers, strict=True)}


def crowd() -> list[Request]:
    verified = conversations()[:3]
    greedy = [one.request(f"greedy {number}") for number, one in enumerate(verified)]
    samplings = {
        "seeded": SamplingParams(temperature=0.9, top_k=40, seed=11),
        "whole": SamplingParams(temperature=0.9, top_k=0, seed=12),
        "penalty": SamplingParams(temperature=0.9, top_k=40, seed=13, frequency_penalty=0.5),
        "logprobs": SamplingParams(temperature=0, logprobs=2),
        "grammar": SamplingParams(
            temperature=0.9, top_k=40, seed=14, grammar=Grammar("regex", "[0-9]{4}")
        ),
    }
    prompt = verified[0].prompt
    drawn = [
        Request(id=name, prompt=prompt, sampling=one, max_tokens=12)
        for name, one in samplings.items()
    ]
    # Text that repeats is what guesses are made of.
    repeated = text_request("greedy repeats", "1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2,", max_tokens=80)
    return [greedy[0], *drawn, *greedy[1:], repeated]


@pytest.mark.parametrize(
    ("params", "is_needed"),
    [
        (SamplingParams(temperature=0, top_k=0), False),
        (SamplingParams(temperature=0.5, top_k=SIZE), False),
        (SamplingParams(temperature=0.5, top_k=SIZE + 1), True),
        (SamplingParams(temperature=0.5, top_k=0), True),
        (SamplingParams(temperature=0, logprobs=0), True),
        (SamplingParams(temperature=0, logit_bias=((5, 1.0),)), True),
        (SamplingParams(temperature=0.5, top_k=40, repeat_penalty=1.1), True),
        (SamplingParams(temperature=0.5, top_k=40, dry_multiplier=0.5), True),
        (SamplingParams(temperature=0, grammar=Grammar("regex", "a")), True),
        (SamplingParams(temperature=0, top_k=0, xtc_probability=0.5), True),
    ],
)
def test_whole_logits_are_needed_where_the_few_may_not_decide(
    params: SamplingParams, *, is_needed: bool
) -> None:
    assert needs_whole_logits(params, SIZE) == is_needed


def test_a_mix_of_requests_switches_twice_in_a_quiet_time_at_most() -> None:
    chance = random.Random(5)
    backend = FakeBackend()
    driver = CoreDriver(runtime_config(device_sampling="on"), backend)
    assert backend.shortlist is not None
    whole = SamplingParams(temperature=0, logprobs=1)
    for number in range(40):
        driver.submit(random_request(f"{number}", chance))
        if number % 2:
            driver.submit(text_request(f"{number} whole", sampling=whole, max_tokens=2))
        for _ in range(3):
            driver.step()
    driver.run()
    assert backend.shortlist.num_switches <= 2 + 2 * driver.clock.now / QUIET_S
    driver.clock.now += QUIET_S
    driver.submit(text_request("after"))
    driver.run()
    assert backend.shortlist.is_on


def test_answers_of_the_fake_are_the_same_with_it() -> None:
    chance = random.Random(6)
    requests = [random_request(str(number), chance) for number in range(20)]
    found = []
    for device_sampling in ("off", "on"):
        config = runtime_config(device_sampling=device_sampling, max_waiting=99)
        driver = CoreDriver(config)
        if driver.backend.shortlist is not None:
            driver.backend.shortlist.switch(on=True)
        driver.submit(*requests)
        found.append({name: one.facts for name, one in driver.run().items() if "seed" not in name})
    assert found[0] == found[1]
