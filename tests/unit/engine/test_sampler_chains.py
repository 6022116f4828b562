"""On the real demo model each sampling field changes the distribution as its definition says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.engine_builders import runtime_config
from support.sampling_reference import distribution, softmax
from terrace_runtime.backend import SamplerSettings
from terrace_runtime.backend.chain import LlamaSampler
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.sampling import logprobs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PLAIN = SamplerSettings(
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=7,
    dry_sequence_breakers=("\n", ":"),
)
PROMPT, ANSWER = "The numbers are 1, 2, 3, 1, 2, 3", ", 1, 2"
DRAWS = 4000


class Lab:
    """The demo model with one row of logits, from which chains draw."""

    def __init__(self) -> None:
        self.backend = LlamaBackend()
        self.backend.load(runtime_config(threads=1))
        self.prompt = self.backend.tokenize(PROMPT, special=False, add_bos=False)
        self.answer = self.backend.tokenize(ANSWER, special=False, add_bos=False)
        tokens = [*self.prompt, *self.answer]
        self.row = self.backend.batch.extend(tokens, 0, 0, outputs=1)
        assert self.backend.decode() == 0
        self.logits: NDArray[np.float32] = self.backend.logits()[0].copy()
        self.likely = [int(token) for token in np.argsort(-self.logits)]

    def chain(self, settings: SamplerSettings) -> LlamaSampler:
        chain = self.backend.sampler(settings, self.prompt)
        assert isinstance(chain, LlamaSampler)
        for token in self.answer:
            chain.accept(token)
        return chain

    def draws(self, settings: SamplerSettings) -> NDArray[np.float64]:
        chain = self.chain(settings)
        tokens = [chain.draw(self.row) for _ in range(DRAWS)]
        chain.close()
        return np.bincount(tokens, minlength=self.logits.size) / DRAWS

    def expected(self, settings: SamplerSettings) -> NDArray[np.float64]:
        pieces = self.backend.info.pieces
        marks = [text.encode() for text in settings.dry_sequence_breakers]
        broken = {token for token, piece in enumerate(pieces) if any(m in piece for m in marks)}
        return distribution(self.logits, settings, self.prompt, self.answer, frozenset(broken))


@cache
def lab() -> Lab:
    return Lab()


def first(count: int) -> list[int]:
    """The likeliest tokens of the row."""
    return lab().likely[:count]


CASES: dict[str, SamplerSettings] = {
    "temperature": replace(PLAIN, temperature=0.7),
    "temperature 0": replace(PLAIN, temperature=0),
    "top_k": replace(PLAIN, top_k=3),
    "top_p": replace(PLAIN, top_p=0.6),
    "min_p": replace(PLAIN, min_p=0.1),
    "typical_p": replace(PLAIN, typical_p=0.5),
    "typical_p after top_k": replace(PLAIN, typical_p=0.7, top_k=20),
    "xtc": replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.05),
    "xtc at times": replace(PLAIN, xtc_probability=0.4, xtc_threshold=0.05),
    "xtc in vain": replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.6),
    "xtc at temperature 0": replace(PLAIN, temperature=0, xtc_probability=1.0, xtc_threshold=0.05),
    "repeat_penalty": replace(PLAIN, repeat_penalty=1.5),
    "repeat_last_n": replace(PLAIN, repeat_penalty=1.5, repeat_last_n=1),
    "repeat_last_n off": replace(PLAIN, repeat_penalty=1.5, repeat_last_n=0),
    "presence_penalty": replace(PLAIN, presence_penalty=1.5),
    "frequency_penalty": replace(PLAIN, frequency_penalty=0.8),
    "dry": replace(PLAIN, dry_multiplier=0.05),
    "dry_base": replace(PLAIN, dry_multiplier=0.05, dry_base=1.1),
    "dry_allowed_length": replace(PLAIN, dry_multiplier=0.05, dry_allowed_length=6),
    "dry_sequence_breakers": replace(PLAIN, dry_multiplier=0.05, dry_sequence_breakers=("3", "é")),
    "all together": replace(
        PLAIN,
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        typical_p=0.9,
        repeat_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        dry_multiplier=0.8,
    ),
}


WITHOUT = {
    "xtc at temperature 0": "temperature 0",
    "repeat_last_n": "repeat_penalty",
    "dry_base": "dry",
    "dry_allowed_length": "dry",
    "dry_sequence_breakers": "dry",
}
"""The case that lacks the field alone, where that is not PLAIN."""


@pytest.mark.parametrize("name", CASES)
def test_a_chain_draws_from_the_distribution_that_its_fields_define(name: str) -> None:
    expected = lab().expected(CASES[name])
    found = lab().draws(CASES[name])
    assert not found[expected == 0].any(), "a token was drawn that cannot be"
    # Half of the sum of the deviations; with this many draws and likely tokens it stays far below.
    assert np.abs(found - expected).sum() / 2 < 0.08


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"xtc in vain", "repeat_last_n off"}))
def test_each_field_has_an_effect_here(name: str) -> None:
    before = CASES.get(WITHOUT.get(name, ""), PLAIN)
    change = lab().expected(CASES[name]) - lab().expected(before)
    assert np.abs(change).sum() / 2 > 0.02


def test_a_bias_bans_and_forces_tokens() -> None:
    best, second = first(2)
    banned = lab().draws(replace(PLAIN, temperature=0, logit_bias=((best, -100.0),)))
    assert banned[second] == 1
    rare = lab().likely[-1]
    forced = lab().draws(replace(PLAIN, logit_bias=((rare, 100.0),)))
    assert forced[rare] == 1
    nudged = replace(PLAIN, top_k=5, logit_bias=((second, 1.0), (best, -0.5)))
    assert np.abs(lab().draws(nudged) - lab().expected(nudged)).sum() / 2 < 0.08


@pytest.mark.parametrize("name", CASES)
def test_a_seed_repeats_and_another_does_not(name: str) -> None:
    def tokens(seed: int) -> list[int]:
        chain = lab().chain(replace(CASES[name], temperature=1.5, seed=seed))
        found = [chain.sample(lab().row) for _ in range(40)]
        chain.close()
        return found

    assert tokens(1) == tokens(1) != tokens(2)


def test_only_the_allowed_tokens_are_drawn() -> None:
    allowed = np.array(sorted(lab().likely[3:9]))
    for settings in (
        PLAIN,
        replace(PLAIN, temperature=0),
        replace(PLAIN, typical_p=0.9, top_k=3),
        replace(PLAIN, logit_bias=((first(1)[0], 100.0), (int(allowed[0]), 1.0))),
    ):
        chain = lab().chain(settings)
        drawn = {chain.draw(lab().row, allowed) for _ in range(200)}
        chain.close()
        assert drawn <= set(allowed.tolist())
        assert len(drawn) > 1 or not settings.temperature


def test_a_breaker_that_many_ask_for_is_looked_up_once() -> None:
    settings = replace(PLAIN, dry_multiplier=1.0, dry_base=1.3)
    for number in range(40):
        lab().backend.prepare(replace(settings, dry_base=1 + number / 100))
    shared = lab().backend._samplers
    assert shared is not None
    assert len(shared._dry) == 16
    chain = lab().chain(settings)
    assert 0 <= chain.sample(lab().row) < lab().logits.size
    chain.close()


def test_logprobs_are_those_of_the_model_s_own_distribution() -> None:
    reference = np.log(softmax(lab().logits.astype(np.float64)))
    info = lab().backend.info
    token = lab().likely[50]
    found = logprobs_of(lab().logits, token, 5, info)
    assert found.piece.encode("latin-1") == info.pieces[token]
    assert found.logprob == pytest.approx(reference[token], abs=1e-4)
    texts = [info.pieces[token] or info.controls[token].encode() for token in first(5)]
    assert [one.piece.encode("latin-1") for one in found.top] == texts
    assert [one.logprob for one in found.top] == pytest.approx(reference[first(5)], abs=1e-4)
    assert logprobs_of(lab().logits, token, 0, info).top == ()
