"""Which sampler a request needs, and all next tokens of one step.

Owns: the choice between numpy's argmax and a C chain, seeds, and validation of the numbers. Does
not own: the chains themselves (``backend``). Next: ``core.py`` calls ``sample`` after each decode.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from terrace_runtime.backend import SamplerSettings
from terrace_runtime.engine.request import InvalidRequestError, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend, SamplerChain

MAX_SEED = 2**32 - 2
"""2**32 - 1 means "draw one yourself" to llama.cpp, and that is not repeatable."""

_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 5),
    ("top_p", 0, 1),
    ("top_k", 0, 1_000_000),
    ("min_p", 0, 1),
    ("repeat_penalty", 0.1, 10),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)


def check_sampling(params: SamplingParams) -> None:
    """Raise InvalidRequestError for a number that llama.cpp would abort on or misread."""
    for name, low, high in _BOUNDS:
        value = getattr(params, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequestError(f"{name} is {value}, but must be {low} to {high}", name)


def is_greedy(params: SamplingParams) -> bool:
    """The likeliest token, nothing else: one argmax serves all such sequences of a step."""
    return (
        params.temperature <= 0
        and params.repeat_penalty == 1
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
    )


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
    )


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
        int(logits[index].argmax()) if sampler is None else sampler.sample(row)
        for index, (row, sampler) in enumerate(zip(rows, samplers, strict=True))
    ]
