"""llama.cpp's sampler chain of one request.

Owns: the order of samplers, what each of them counts, and the short list that spares a chain most
of a large vocabulary. Does not own: when greedy needs no chain (``engine.sampling``), grammars
(``grammar.py``) or the binding; ``llama.py`` hands it in, for it alone imports it.

The order, which is llama-server's: logit_bias, repeat_penalty, presence and frequency penalties,
DRY, top_k, typical_p, top_p, min_p, XTC, temperature, a seeded draw. At temperature 0 the likeliest
token of what is left after XTC is taken.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import MAX_WINDOW, BackendError, TokenChooser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from terrace_runtime.backend import SamplerSettings
    from terrace_runtime.backend.shortlist import Shortlist
    from terrace_runtime.backend.vocabulary import Vocabulary

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""
_SHORT_LIST_FROM = 32_768
"""Tokens of a vocabulary from which finding the candidates first is faster than a whole chain."""
_BLOCK = 32
_UNDERFLOW = 1e-30
"""min_p before typical_p: a probability of 0 would make its entropy, hence its order, NaN."""
_XTC_SEED = 0x9E3779B9
_DRY_PROTOTYPES = 16
"""DRY samplers kept for further requests, which mostly ask for the same settings."""


class _Candidates(ctypes.Structure):
    """llama_token_data_array."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


class SamplerCalls:
    """llama.cpp's sampler functions and what all chains of one model share."""

    def __init__(
        self,
        lib: Any,
        function: Callable[..., Any],
        vocabulary: Vocabulary,
        shortlist: Shortlist | None = None,
    ) -> None:
        """``lib`` is llama_cpp's low-level module; ``function`` makes a fast one of it by name."""
        self.shortlist = shortlist
        self.context: Any = None
        """Whose logits are meant; another one after ``Backend.reopen``."""
        chain, row = ctypes.c_void_p, ctypes.c_int32
        self.lib = lib
        self.vocabulary = vocabulary
        self.sample = function("llama_sampler_sample", ctypes.c_int32, chain, chain, row)
        self.apply = function("llama_sampler_apply", None, chain, ctypes.c_void_p)
        self.accept = function("llama_sampler_accept", None, chain, ctypes.c_int32)
        self._logits_of = function("llama_get_logits_ith", ctypes.c_void_p, chain, row)
        self._row_type: Any = ctypes.c_float * vocabulary.size
        self._candidates = np.zeros(vocabulary.size, _TOKEN_DATA)
        self._dry: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def logits(self, row: int) -> NDArray[np.float32]:
        """A view of the logits of batch row ``row``."""
        address = self._logits_of(self.context, row)
        if not address:
            raise BackendError(f"llama.cpp has no logits for row {row} of the last batch")
        row_view: NDArray[np.float32] = np.frombuffer(
            self._row_type.from_address(address), np.float32
        )
        return row_view

    def choose(
        self, chain: Any, logits: NDArray[np.float32], tokens: NDArray[np.intp] | None
    ) -> int:
        """What ``chain`` picks of ``tokens`` (None: all), whose logits come in the same order.

        It does not count it yet.
        """
        count = logits.size if tokens is None else tokens.size
        data = self._candidates[:count]
        data["id"] = np.arange(count, dtype=np.int32) if tokens is None else tokens
        data["logit"] = logits
        found = _Candidates(data.ctypes.data, count, -1, False)
        self.apply(chain, ctypes.byref(found))
        if not 0 <= found.selected < found.size:
            raise BackendError("llama.cpp's sampler chain selected no token")
        # XTC moves the start of the array.
        place = found.data + found.selected * _TOKEN_DATA.itemsize
        return ctypes.c_int32.from_address(place).value

    def prepare(self, settings: SamplerSettings) -> None:
        """Make on any thread what is slow: DRY looks its breakers up in the whole vocabulary."""
        if settings.has_dry:
            self.lib.llama_sampler_free(self.dry(settings))

    def dry(self, settings: SamplerSettings) -> Any:
        """A DRY sampler of one's own, a copy of one that is kept."""
        lib, breakers = self.lib, settings.dry_sequence_breakers
        window = _window(settings.dry_penalty_last_n)
        shape = (settings.dry_multiplier, settings.dry_base, settings.dry_allowed_length, window)
        key = (*shape, breakers)
        with self._lock:
            if key in self._dry:
                self._dry.move_to_end(key)
                return lib.llama_sampler_clone(self._dry[key])
        # Outside of the lock, for which the engine's thread may wait.
        texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
        made = lib.llama_sampler_init_dry(self.vocabulary.pointer, *shape, texts, len(breakers))
        own = lib.llama_sampler_clone(made)
        with self._lock:
            stale = self._dry.pop(key, None)
            self._dry[key] = made
            if len(self._dry) > _DRY_PROTOTYPES:
                stale = self._dry.popitem(last=False)[1]
            if stale is not None:
                lib.llama_sampler_free(stale)
        return own

    def close(self) -> None:
        """Free what is shared."""
        while self._dry:
            self.lib.llama_sampler_free(self._dry.popitem()[1])


class LlamaSampler(TokenChooser):
    """A C chain in the order of this file's docstring."""

    def __init__(
        self, calls: SamplerCalls, settings: SamplerSettings, prompt: Sequence[int]
    ) -> None:
        """``prompt`` is what repeat_penalty and DRY have seen already."""
        self._calls = calls
        self._is_argmax = settings.is_greedy
        self._has_bias = bool(settings.logit_bias)
        self._num_top = _short_list_of(settings, calls.vocabulary.size)
        lib = calls.lib
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain: Any = lib.llama_sampler_chain_init(params)
        for sampler in (*_changing(calls, settings, prompt), *_choosing(lib, settings)):
            lib.llama_sampler_chain_add(self._chain, sampler)

    @override
    def sample(self, row: int) -> int:
        if not self._num_top and not self._is_shortened:
            return int(self._calls.sample(self._chain, self._calls.context, row))
        token = self.draw(row)
        self.accept(token)
        return token

    @override
    def draw(self, row: int, allowed: NDArray[np.intp] | None = None) -> int:
        if self._is_shortened:
            assert allowed is None, "grammars need whole logits"
            assert self._calls.shortlist is not None
            few, theirs = self._calls.shortlist.row(row)
            return self._calls.choose(self._chain, theirs, few)
        logits = self._calls.logits(row)
        if self._is_argmax:
            best = logits.argmax() if allowed is None else allowed[logits[allowed].argmax()]
            return int(best)
        if allowed is None and self._num_top:
            allowed = top_candidates(logits, self._num_top)
        elif allowed is not None and self._has_bias:
            # llama.cpp finds a biased token at once only where each stands at its own index.
            masked = np.full_like(logits, -np.inf)
            masked[allowed] = logits[allowed]
            logits, allowed = masked, None
        chosen = logits if allowed is None else logits[allowed]
        return self._calls.choose(self._chain, chosen, allowed)

    @property
    def _is_shortened(self) -> bool:
        shortlist = self._calls.shortlist
        return shortlist is not None and shortlist.is_on

    @override
    def accept(self, token: int) -> None:
        self._calls.accept(self._chain, token)

    @override
    def close(self) -> None:
        if self._chain:
            self._calls.lib.llama_sampler_free(self._chain)
        self._chain = None


def top_candidates(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Tokens among which the ``count`` likeliest are, a small part of a large vocabulary.

    The ``count``-th highest of all blocks' maxima is exceeded by no more than ``count`` blocks, and
    a token of the ``count`` likeliest cannot lie in a block whose maximum is below it.
    """
    columns = logits.size // _BLOCK
    peaks = logits[: columns * _BLOCK].reshape(_BLOCK, columns).max(axis=0)
    if count >= columns:
        return np.arange(logits.size)
    found = np.flatnonzero(peaks >= np.partition(peaks, -count)[-count])
    inside = (np.arange(_BLOCK)[:, np.newaxis] * columns + found).ravel()
    return np.concatenate((inside, np.arange(columns * _BLOCK, logits.size)))


def _short_list_of(settings: SamplerSettings, vocabulary: int) -> int:
    """How many of the likeliest tokens decide; 0: all of them may."""
    if vocabulary < _SHORT_LIST_FROM or settings.temperature <= 0 or settings.changes_logits:
        return 0
    return settings.top_k if settings.top_k * _BLOCK * 4 <= vocabulary else 0


def _window(last_n: int) -> int:
    return MAX_WINDOW if last_n < 0 else min(last_n, MAX_WINDOW)


def _changing(calls: SamplerCalls, settings: SamplerSettings, prompt: Sequence[int]) -> list[Any]:
    """Samplers that change logits by what came before."""
    lib, size = calls.lib, calls.vocabulary.size
    chain = []
    if settings.logit_bias:
        biases = (lib.llama_logit_bias * len(settings.logit_bias))(*settings.logit_bias)
        chain.append(lib.llama_sampler_init_logit_bias(size, len(biases), biases))
    if settings.has_repeat_penalty:
        window = _window(settings.repeat_last_n)
        repeat = lib.llama_sampler_init_penalties(size, window, settings.repeat_penalty, 0.0, 0.0)
        _count(calls, repeat, prompt[-window:])
        chain.append(repeat)
    if settings.frequency_penalty or settings.presence_penalty:
        counted = (settings.frequency_penalty, settings.presence_penalty)
        chain.append(lib.llama_sampler_init_penalties(size, MAX_WINDOW, 1.0, *counted))
    if settings.has_dry:
        dry = calls.dry(settings)
        _count(calls, dry, prompt[-_window(settings.dry_penalty_last_n) :])
        chain.append(dry)
    return chain


def _count(calls: SamplerCalls, sampler: Any, tokens: Sequence[int]) -> None:
    for token in tokens:
        calls.accept(sampler, token)


def _choosing(lib: Any, settings: SamplerSettings) -> list[Any]:
    """Samplers that cut candidates away, and the one that decides."""
    chain = []
    # Without XTC, which takes the likeliest away, nothing of this changes which one that is.
    if settings.temperature > 0 or settings.has_xtc:
        chain = _cutting(lib, settings)
    if settings.temperature <= 0:
        return [*chain, lib.llama_sampler_init_greedy()]
    chain.append(lib.llama_sampler_init_temp(settings.temperature))
    return [*chain, lib.llama_sampler_init_dist(settings.seed)]


def _cutting(lib: Any, settings: SamplerSettings) -> list[Any]:
    chain = []
    if settings.top_k > 0:
        chain.append(lib.llama_sampler_init_top_k(settings.top_k))
    if settings.typical_p < 1:
        chain.append(lib.llama_sampler_init_min_p(_UNDERFLOW, 1))
        chain.append(lib.llama_sampler_init_typical(settings.typical_p, 1))
    if settings.top_p < 1:
        chain.append(lib.llama_sampler_init_top_p(settings.top_p, 1))
    if settings.min_p > 0:
        chain.append(lib.llama_sampler_init_min_p(settings.min_p, 1))
    if settings.has_xtc:
        # Its own seed: with the draw's, XTC would act just when a likely token is drawn.
        seed = (settings.seed + _XTC_SEED) % (2**32 - 1)
        chance, threshold = settings.xtc_probability, settings.xtc_threshold
        chain.append(lib.llama_sampler_init_xtc(chance, threshold, 1, seed))
    return chain
