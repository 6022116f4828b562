"""llama.cpp's sampler chain of one request.

Owns: the order of samplers and what each of them counts. Does not own: when greedy needs no chain
(``engine.sampling``) or the binding; ``llama.py`` hands it in, for it alone imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from terrace_runtime.backend import SamplerChain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from terrace_runtime.backend import SamplerSettings

_REPEAT_WINDOW = 64
"""Tokens that repeat_penalty looks back, prompt included: llama.cpp's own default."""
_GENERATED_WINDOW = 4096
"""Generated tokens that presence_penalty and frequency_penalty count."""


class LlamaSampler(SamplerChain):
    """A C chain: penalties, top_k, top_p, min_p, temperature, draw; or greedy at temperature 0."""

    def __init__(
        self,
        lib: Any,
        sample: Callable[[Any, Any, int], int],
        context: Any,
        vocabulary: int,
        settings: SamplerSettings,
        prompt: Sequence[int],
    ) -> None:
        """``lib`` is llama_cpp's low-level module, ``sample`` its llama_sampler_sample."""
        self._lib = lib
        self._sample = sample
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._context = context
        self._chain: Any = lib.llama_sampler_chain_init(params)
        if settings.repeat_penalty != 1:
            repeat = lib.llama_sampler_init_penalties(
                vocabulary, _REPEAT_WINDOW, settings.repeat_penalty, 0.0, 0.0
            )
            lib.llama_sampler_chain_add(self._chain, repeat)
            # Counted before the other samplers join, so that repeat_penalty alone sees the prompt.
            for token in prompt[-_REPEAT_WINDOW:]:
                lib.llama_sampler_accept(self._chain, token)
        for sampler in _samplers(lib, vocabulary, settings):
            lib.llama_sampler_chain_add(self._chain, sampler)

    @override
    def sample(self, row: int) -> int:
        return self._sample(self._chain, self._context, row)

    @override
    def close(self) -> None:
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
        self._chain = None


def _samplers(lib: Any, vocabulary: int, settings: SamplerSettings) -> list[Any]:
    chain = []
    if settings.frequency_penalty or settings.presence_penalty:
        chain.append(
            lib.llama_sampler_init_penalties(
                vocabulary,
                _GENERATED_WINDOW,
                1.0,
                settings.frequency_penalty,
                settings.presence_penalty,
            )
        )
    if settings.temperature <= 0:
        return [*chain, lib.llama_sampler_init_greedy()]
    if settings.top_k > 0:
        chain.append(lib.llama_sampler_init_top_k(settings.top_k))
    if settings.top_p < 1:
        chain.append(lib.llama_sampler_init_top_p(settings.top_p, 1))
    if settings.min_p > 0:
        chain.append(lib.llama_sampler_init_min_p(settings.min_p, 1))
    chain.append(lib.llama_sampler_init_temp(settings.temperature))
    chain.append(lib.llama_sampler_init_dist(settings.seed))
    return chain
