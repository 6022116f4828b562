"""What each sampling field does to a distribution, by its definition, in numpy.

Written from the papers and the documentation of llama-server, not from llama.cpp's code; tests hold
the chains of the real backend against it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from terrace_runtime.backend import SamplerSettings

    Floats = NDArray[np.float64]


def distribution(
    logits: NDArray[Any],
    settings: SamplerSettings,
    prompt: Sequence[int],
    generated: Sequence[int],
    breakers: frozenset[int] = frozenset(),
) -> Floats:
    """Probability of each token to be the next; ``breakers`` are DRY's, each one token."""
    changed = _changed(logits.astype(np.float64), settings, prompt, generated, breakers)
    kept = _kept(changed, settings)
    plain = _final(changed, kept, settings.temperature)
    if not settings.xtc_probability:
        return plain
    cut = _final(changed, _without_likely(changed, kept, settings), settings.temperature)
    return settings.xtc_probability * cut + (1 - settings.xtc_probability) * plain


def softmax(logits: Floats) -> Floats:
    """Probabilities at temperature 1; -inf is 0."""
    weights: Floats = np.exp(logits - logits.max())
    chances: Floats = weights / weights.sum()
    return chances


def _changed(
    logits: Floats,
    settings: SamplerSettings,
    prompt: Sequence[int],
    generated: Sequence[int],
    breakers: frozenset[int],
) -> Floats:
    for token, bias in settings.logit_bias:
        logits[token] += bias
    history = [*prompt, *generated]
    for token in set(history[-settings.repeat_last_n :] if settings.repeat_last_n else ()):
        positive = logits[token] > 0
        penalty = settings.repeat_penalty
        logits[token] = logits[token] / penalty if positive else logits[token] * penalty
    for token, count in Counter(generated).items():
        logits[token] -= settings.presence_penalty + count * settings.frequency_penalty
    if settings.dry_multiplier:
        for token, length in _repetitions(history, breakers).items():
            if length >= settings.dry_allowed_length:
                over = length - settings.dry_allowed_length
                logits[token] -= settings.dry_multiplier * settings.dry_base**over
    return logits


def _repetitions(history: list[int], breakers: frozenset[int]) -> dict[int, int]:
    """How long a sequence each token would repeat, if it came next."""
    longest: dict[int, int] = {}
    for place in range(1, len(history)):
        length = 0
        while length < place and history[place - 1 - length] == history[-1 - length]:
            if history[-1 - length] in breakers:
                break
            length += 1
        token = history[place]
        longest[token] = max(longest.get(token, 0), length)
    return longest


def _kept(logits: Floats, settings: SamplerSettings) -> NDArray[np.intp]:
    """Tokens left by the cuts, the likeliest first."""
    kept: NDArray[np.intp] = np.argsort(-logits, kind="stable")
    if settings.top_k:
        kept = kept[: settings.top_k]
    if settings.typical_p < 1:
        chances = softmax(logits[kept])
        surprise = -np.log(np.maximum(chances, 1e-300))
        distance = np.abs(surprise - (chances * surprise).sum())
        order = np.argsort(distance, kind="stable")
        count = int(np.searchsorted(np.cumsum(chances[order]), settings.typical_p, "right")) + 1
        kept = kept[np.sort(order[:count])]
    if settings.top_p < 1:
        total = np.cumsum(softmax(logits[kept]))
        kept = kept[: int(np.searchsorted(total, settings.top_p)) + 1]
    if settings.min_p:
        chances = softmax(logits[kept])
        kept = kept[chances >= settings.min_p * chances.max()]
    return kept


def _without_likely(
    logits: Floats, kept: NDArray[np.intp], settings: SamplerSettings
) -> NDArray[np.intp]:
    """XTC: of the tokens at or above the threshold only the least likely stays."""
    likely = int((softmax(logits[kept]) >= settings.xtc_threshold).sum())
    return kept[max(likely - 1, 0) :]


def _final(logits: Floats, kept: NDArray[np.intp], temperature: float) -> Floats:
    found: Floats = np.zeros(logits.size)
    if temperature <= 0:
        found[kept[0]] = 1
    else:
        found[kept] = softmax(logits[kept] / temperature)
    return found
