"""The device hands out each row's likeliest logits alone, found by a sampler in llama.cpp's graph.

Owns: the port, llama.cpp's samplers behind it (one top-k chain per slot), and the trial that says
whether they win. Does not own: when the engine switches (``engine.shortlisting``) or what is drawn
of the few (``chain.py``). Why nothing but top-k runs on the device: docs/adr/0019. Next:
``llama.py`` hands the binding in, for it alone imports it.
"""

from __future__ import annotations

import ctypes
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import DECODE_OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend
    from terrace_runtime.backend.devices import Devices
    from terrace_runtime.contract import RuntimeConfig

_LOGGER = logging.getLogger("terrace_runtime.backend")
SIZE = 128
"""Candidates per row: more than nearly every request's top_k, and a kilobyte instead of 600."""
_MIN_VOCABULARY = 4 * SIZE
_ROUNDS = 5
_MIN_GAIN = 0.98
"""The trial must take at most this share of the time without."""
_COPIES = 4
"""Copies of a step's logits that the graph and the output buffer may need besides."""
_SPARE_BYTES = 128 * 2**20
"""llama.cpp aborts when a graph does not fit, so the device must have room to spare."""


class Shortlist(Protocol):
    """Rows of a decode shrunk to their likeliest tokens while it is on."""

    @property
    def size(self) -> int:
        """Tokens per row."""

    @property
    def is_on(self) -> bool:
        """Decodes from now on give no whole rows of logits."""

    @property
    def switch_s(self) -> float:
        """Seconds that the first decode after a switch takes longer."""

    def switch(self, *, on: bool) -> None:
        """From the next decode on; free when nothing changes."""

    def row(self, row: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Tokens, ascending, and logits of batch row ``row`` of the last decode; copies."""


class LlamaShortlist(Shortlist):
    """One chain per slot: llama.cpp refuses to attach a chain twice, so each switch makes new ones.

    All slots change together: every change makes llama.cpp lay its graphs out anew.
    """

    def __init__(
        self, lib: Any, function: Callable[..., Any], context: Any, num_slots: int
    ) -> None:
        """``lib`` is llama_cpp's low-level module; ``function`` makes a fast one of it by name."""
        pointer, row = ctypes.c_void_p, ctypes.c_int32
        self._lib = lib
        self._context = context
        self._num_slots = num_slots
        self._chains: list[Any] = []
        self._count = function("llama_get_sampled_candidates_count_ith", row, pointer, row)
        self._ids = function("llama_get_sampled_candidates_ith", pointer, pointer, row)
        self._logits = function("llama_get_sampled_logits_ith", pointer, pointer, row)
        self._switch_s = 0.0

    @property
    @override
    def size(self) -> int:
        return SIZE

    @property
    @override
    def is_on(self) -> bool:
        return bool(self._chains)

    @property
    @override
    def switch_s(self) -> float:
        return self._switch_s

    @override
    def switch(self, *, on: bool) -> None:
        if on == self.is_on:
            return
        if not on:
            for slot in range(self._num_slots):
                self._lib.llama_set_sampler(self._context, slot, None)
            self.free()
            return
        params = self._lib.llama_sampler_chain_default_params()
        params.no_perf = True
        for slot in range(self._num_slots):
            chain = self._lib.llama_sampler_chain_init(params)
            self._lib.llama_sampler_chain_add(chain, self._lib.llama_sampler_init_top_k(SIZE))
            self._chains.append(chain)
            self._lib.llama_set_sampler(self._context, slot, chain)

    @override
    def row(self, row: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        count = self._count(self._context, row)
        assert count == SIZE, "the row has no shortlist"
        ids = np.frombuffer(_floats(self._ids(self._context, row)), np.int32)
        order = ids.argsort()
        logits = np.frombuffer(_floats(self._logits(self._context, row)), np.float32)
        return ids[order].astype(np.intp), logits[order]

    def works(self, row: int) -> bool:
        """Whether the device's kernels could run it: else llama.cpp leaves the row as it was."""
        return bool(self._count(self._context, row) == SIZE)

    def free(self) -> None:
        """Free the chains; the context must be gone or know none of them."""
        while self._chains:
            self._lib.llama_sampler_free(self._chains.pop())

    def tried_out(self, backend: Backend, config: RuntimeConfig) -> Self | None:
        """Itself, switched on, where the kernels can and where it is faster or forced; else None.

        Decodes a few tokens in empty slots and drops them.
        """
        num_rows = min(config.parallel, config.batch_tokens)
        whole = self._best_of(backend, num_rows, lambda row: int(backend.logits()[row].argmax()))
        self.switch(on=True)
        switched_s = _decode(backend, num_rows)
        if not self.works(0):
            _LOGGER.info("the device's kernels cannot find the likeliest tokens; the host does")
            self.switch(on=False)
            _drop(backend, num_rows)
            return None
        short = self._best_of(backend, num_rows, lambda row: int(self.row(row)[1].argmax()))
        _drop(backend, num_rows)
        self._switch_s = max(switched_s - short, 0.0)
        shown = f"{short * 1e3:.2f} ms a step with, {whole * 1e3:.2f} ms without"
        _LOGGER.info("the device cuts logits to the likeliest %d: %s", SIZE, shown)
        self.switch(on=config.device_sampling == "on" or short < whole * _MIN_GAIN)
        return self if self.is_on else None

    def _best_of(self, backend: Backend, num_rows: int, read: Callable[[int], int]) -> float:
        seconds = []
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            _decode(backend, num_rows)
            for row in range(num_rows):
                read(row)
            seconds.append(time.perf_counter() - started)
        return min(seconds)


def is_worth_trying(config: RuntimeConfig, devices: Devices, vocabulary: int) -> bool:
    """Whether a shortlist is wanted and there is room for what it adds to the graph."""
    wanted = config.device_sampling
    if wanted == "off" or vocabulary < _MIN_VOCABULARY or (wanted == "auto" and not devices.gpus):
        return False
    # One of the devices holds the output layer, and which one llama.cpp does not tell.
    needed = _COPIES * (config.max_outputs + 1) * vocabulary * 4 + _SPARE_BYTES
    return all(devices.memory(device)[0] >= needed for device in devices.gpus)


def _decode(backend: Backend, num_rows: int) -> float:
    """Seconds of one decode of a token in each of the first slots."""
    _drop(backend, num_rows)
    backend.batch.extend_single([0] * num_rows, range(num_rows), [0] * num_rows)
    started = time.perf_counter()
    code = backend.decode()
    backend.logits()
    seconds = time.perf_counter() - started
    assert code == DECODE_OK, "the warm-up decoded as much"
    return seconds


def _drop(backend: Backend, num_rows: int) -> None:
    for slot in range(num_rows):
        backend.seq_rm(slot)
    backend.batch.clear()


def _floats(address: int) -> Any:
    """``SIZE`` values of four bytes at ``address``."""
    return (ctypes.c_float * SIZE).from_address(address)
