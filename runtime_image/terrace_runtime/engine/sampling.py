"""Which sampler a request needs, all next tokens of one step, and their log probabilities.

Owns: the choice between numpy's argmax and a C chain, seeds, validation of the numbers, logprobs.
Does not own: the chains and grammars themselves (``backend``). Next: ``core.py`` samples after each
decode. docs/sampling.md lists every field.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from terrace_runtime.backend import MAX_WINDOW, GrammarError, SamplerSettings
from terrace_runtime.backend.chain import top_candidates
from terrace_runtime.engine.request import (
    InvalidRequestError,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend, BackendInfo, SamplerChain
    from terrace_runtime.backend.shortlist import Shortlist

MAX_SEED = 2**32 - 2
"""2**32 - 1 means "draw one yourself" to llama.cpp, and that is not repeatable."""
MAX_BREAKERS = 16
MAX_BREAKER_BYTES = 40
"""llama.cpp cuts a longer one."""
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_LOGPROBS = 20
_LEAST_LOGPROB = -9999.0
"""OpenAI's number for what is impossible; JSON has no infinity."""

BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 5),
    ("top_p", 0, 1),
    ("top_k", 0, 1_000_000),
    ("min_p", 0, 1),
    ("typical_p", 0, 1),
    ("repeat_penalty", 0.1, 10),
    ("repeat_last_n", -1, MAX_WINDOW),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("dry_multiplier", 0, 100),
    ("dry_base", 1, 100),
    ("dry_allowed_length", 0, MAX_WINDOW),
    ("dry_penalty_last_n", -1, MAX_WINDOW),
    ("xtc_probability", 0, 1),
    ("xtc_threshold", 0, 1),
)


def check_sampling(params: SamplingParams, vocabulary: int) -> None:
    """Raise InvalidRequestError for what llama.cpp would abort on, misread or take long for."""
    for name, low, high in BOUNDS:
        value = getattr(params, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequestError(f"{name} is {value}, but must be {low} to {high}", name)
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_LOGPROBS:
        message = f"logprobs is {params.logprobs}, but must be 0 to {MAX_LOGPROBS}"
        raise InvalidRequestError(message, "logprobs")
    if params.grammar is not None and params.ignore_eos:
        message = "ignore_eos would make a grammar's answer go on after its end"
        raise InvalidRequestError(message, "ignore_eos")
    _check_breakers(params.dry_sequence_breakers)
    _check_biases(params.logit_bias, vocabulary)


def _check_breakers(breakers: tuple[str, ...]) -> None:
    name = "dry_sequence_breakers"
    if len(breakers) > MAX_BREAKERS:
        raise InvalidRequestError(f"{name} may hold {MAX_BREAKERS} texts", name)
    for text in breakers:
        size = len(text.encode("utf-8", "replace"))
        if not 0 < size <= MAX_BREAKER_BYTES or "\0" in text:
            message = f"{name}: each has 1 to {MAX_BREAKER_BYTES} bytes, none of them 0"
            raise InvalidRequestError(message, name)


def _check_biases(biases: tuple[tuple[int, float], ...], vocabulary: int) -> None:
    if len(biases) > MAX_BIASES:
        raise InvalidRequestError(f"logit_bias may name {MAX_BIASES} tokens", "logit_bias")
    for token, bias in biases:
        if not 0 <= token < vocabulary:
            message = f"logit_bias: token {token} is not in the model's vocabulary of {vocabulary}"
            raise InvalidRequestError(message, "logit_bias")
        if not (math.isfinite(bias) and -MAX_BIAS <= bias <= MAX_BIAS):
            message = f"logit_bias: {bias} must be {-MAX_BIAS} to {MAX_BIAS}"
            raise InvalidRequestError(message, "logit_bias")


def is_greedy(params: SamplingParams) -> bool:
    """The likeliest token, nothing else: one argmax serves all such sequences of a step."""
    return params.grammar is None and sampler_settings(params, 0).is_greedy


def sampler_settings(params: SamplingParams, drawn_seed: int) -> SamplerSettings:
    """Settings of a C chain; ``drawn_seed`` serves a request that brings none."""
    seed = drawn_seed if params.seed is None else params.seed
    return SamplerSettings(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=seed % (MAX_SEED + 1),
        typical_p=params.typical_p,
        repeat_last_n=params.repeat_last_n,
        dry_multiplier=params.dry_multiplier,
        dry_base=params.dry_base,
        dry_allowed_length=params.dry_allowed_length,
        dry_penalty_last_n=params.dry_penalty_last_n,
        dry_sequence_breakers=params.dry_sequence_breakers,
        xtc_probability=params.xtc_probability,
        xtc_threshold=params.xtc_threshold,
        logit_bias=params.logit_bias,
        grammar=params.grammar,
    )


def prepare_sampler(backend: Backend, params: SamplingParams) -> None:
    """Do on the caller's thread what is slow in ``open_sampler``.

    Raises InvalidRequestError for a grammar that cannot be used.
    """
    try:
        backend.prepare(sampler_settings(params, 0))
    except GrammarError as error:
        field = "grammar" if params.grammar is None else params.grammar.field
        raise InvalidRequestError(f"{field} cannot be used: {error}", field) from error


def open_sampler(
    backend: Backend, params: SamplingParams, prompt: Seq[int], drawn_seed: int
) -> SamplerChain | None:
    """A chain that has counted the prompt, or None for a greedy request."""
    if is_greedy(params):
        return None
    return backend.sampler(sampler_settings(params, drawn_seed), prompt)


def sample(
    logits: NDArray[np.float32], rows: Seq[int], samplers: Seq[SamplerChain | None]
) -> list[int]:
    """Next token of each output; ``rows`` are their rows in the batch, ``samplers`` their chains.

    ``logits`` has shape (outputs, vocabulary) in the same order.
    """
    if all(sampler is None for sampler in samplers):
        best: list[int] = logits.argmax(axis=1).tolist()
        return best
    return [
        pick(logits[index], row, sampler)
        for index, (row, sampler) in enumerate(zip(rows, samplers, strict=True))
    ]


def pick(logits: NDArray[np.float32], row: int, sampler: SamplerChain | None) -> int:
    """Next token of one output: ``logits`` is its row of them, ``row`` its row in the batch."""
    return int(logits.argmax()) if sampler is None else sampler.sample(row)


def pick_few(few: Shortlist, row: int, sampler: SamplerChain | None) -> int:
    """The same where the rows hold their likeliest tokens alone."""
    if sampler is not None:
        return sampler.sample(row)
    tokens, logits = few.row(row)
    return int(tokens[logits.argmax()])


def logprobs_of(
    logits: NDArray[np.float32], token: int, count: int, info: BackendInfo
) -> TokenLogprobs:
    """Log probabilities of ``token`` and of the ``count`` likeliest in its place.

    ``logits`` is one row as the model gave it: before temperature, penalties, biases and grammar,
    so that they compare between requests, as OpenAI's do.
    """
    highest = float(logits.max())
    total = highest + math.log(float(np.exp(logits - highest).sum(dtype=np.float64)))

    def entry(one: int) -> TokenLogprob:
        return TokenLogprob(_piece(one, info), max(float(logits[one]) - total, _LEAST_LOGPROB))

    top: tuple[TokenLogprob, ...] = ()
    if count:
        near = top_candidates(logits, count)
        best = near[np.argsort(-logits[near], kind="stable")[:count]]
        top = tuple(entry(int(one)) for one in best)
    own = entry(token)
    return TokenLogprobs(own.piece, own.logprob, top, len(info.pieces[token]))


def _piece(token: int, info: BackendInfo) -> str:
    piece = info.pieces[token] or info.controls.get(token, "").encode()
    return piece.decode("latin-1")
