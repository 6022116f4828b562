"""Rows of embeddings in the place of tokens: one llama_decode for one sequence.

Owns: the memory that llama.cpp reads such a batch from, and the checks that keep an abort from
being reachable. Does not own: where rows come from (``mtmd.py``) or the binding; ``llama.py`` hands
it in, for it alone imports it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from terrace_runtime.backend import BackendError
from terrace_runtime.backend.rows import RawBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class EmbeddingRows:
    """Evaluates rows in a context that is opened for generation."""

    def __init__(self, lib: Any, decode: Callable[[Any, Any], int], context: Any) -> None:
        """``lib`` is llama_cpp's low-level module, ``decode`` its llama_decode."""
        self._lib = lib
        self._decode = decode
        self._context = context
        self._width = int(lib.llama_model_n_embd_inp(lib.llama_get_model(context)))
        self._most = int(lib.llama_n_batch(context))
        self.together = min(self._most, int(lib.llama_n_ubatch(context)))
        """Most rows that can attend to each other."""
        self._num_slots = int(lib.llama_n_seq_max(context))
        self._raw = RawBatch(lib, self._most)

    def decode(
        self,
        slot: int,
        position: int,
        rows: NDArray[np.float32],
        *,
        is_causal: bool,
        wants_logits: bool,
    ) -> int:
        """See ``EmbeddingInput.decode_embeddings``."""
        self._check(slot, rows, is_causal=is_causal)
        numbers = np.ascontiguousarray(rows, np.float32)
        count, batch = len(rows), self._raw.rows
        batch.size = count
        batch.positions[:count] = range(position, position + count)
        batch.sequences[:count] = slot
        batch.outputs[:count] = 0
        batch.outputs[count - 1] = wants_logits
        raw = self._raw.raw
        raw.token = None
        raw.embd = numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if is_causal:
            return self._decode(self._context, raw)
        self._lib.llama_set_causal_attn(self._context, False)
        try:
            return self._decode(self._context, raw)
        finally:
            self._lib.llama_set_causal_attn(self._context, True)

    def _check(self, slot: int, rows: NDArray[np.float32], *, is_causal: bool) -> None:
        if rows.ndim != 2 or rows.shape[1] != self._width:  # noqa: PLR2004 - rows by columns
            raise BackendError(
                f"bad rows: {rows.shape}, the model reads {self._width} numbers each"
            )
        most = self._most if is_causal else self.together
        if not 0 < len(rows) <= most:
            raise BackendError(f"bad batch: {len(rows)} rows, at most {most} are possible")
        if not 0 <= slot < self._num_slots:
            raise BackendError(f"bad batch: sequence id {slot} is not in 0..{self._num_slots - 1}")
