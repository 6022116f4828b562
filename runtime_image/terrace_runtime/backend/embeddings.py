"""Rows of embeddings in the place of tokens: one llama_decode for one sequence.

Owns: the memory that llama.cpp reads such a batch from, and the checks that keep an abort from
being reachable. Does not own: where rows come from (``mtmd.py``) or the binding; ``llama.py`` hands
it in, for it alone imports it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from terrace_runtime.backend import BackendError
from terrace_runtime.backend.rows import RawBatch, pointer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terrace_runtime.backend.projector import Grid

ROPE_OF_SEVERAL: Final = (8, 40)
"""llama.h, enum llama_rope_type: positions of more than one number (M-RoPE)."""
_NUMBERS: Final = 4
"""Of such a position: that of all rows of an image, line, column, and one that is 0."""


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
        model = lib.llama_get_model(context)
        self._numbers = _NUMBERS if lib.llama_model_rope_type(model) in ROPE_OF_SEVERAL else 1
        self._positions = np.zeros(self._numbers * self._most, np.int32)

    def decode(
        self,
        slot: int,
        position: int,
        rows: NDArray[np.float32],
        *,
        is_causal: bool,
        wants_logits: bool,
        grid: Grid | None = None,
        first: int = 0,
    ) -> int:
        """See ``EmbeddingInput.decode_embeddings``; rows were ``check``ed.

        ``position`` is llama.cpp's, with a ``grid`` that of all rows.
        """
        numbers = np.ascontiguousarray(rows, np.float32)
        count, batch = len(rows), self._raw.rows
        batch.size = count
        self._place(position, count, grid, first)
        batch.sequences[:count] = slot
        batch.outputs[:count] = 0
        batch.outputs[count - 1] = wants_logits
        raw = self._raw.raw
        raw.token = None
        raw.pos = pointer(self._positions, ctypes.c_int32)
        raw.embd = numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if is_causal:
            return self._decode(self._context, raw)
        self._lib.llama_set_causal_attn(self._context, False)
        try:
            return self._decode(self._context, raw)
        finally:
            self._lib.llama_set_causal_attn(self._context, True)

    def _place(self, position: int, count: int, grid: Grid | None, first: int) -> None:
        """Write the positions, number by number as llama.cpp reads them."""
        numbers = self._positions[: self._numbers * count].reshape(self._numbers, count)
        if grid is None:
            numbers[:] = np.arange(position, position + count)
            return
        rows = np.arange(first, first + count)
        numbers[:] = position
        numbers[1] += rows // grid.columns
        numbers[2] += rows % grid.columns
        numbers[3] = 0

    def check(self, slot: int, rows: NDArray[np.float32], *, is_causal: bool) -> None:
        """Raise BackendError for what would have llama.cpp abort."""
        if rows.ndim != 2 or rows.shape[1] != self._width:  # noqa: PLR2004 - rows by columns
            raise BackendError(
                f"bad rows: {rows.shape}, the model reads {self._width} numbers each"
            )
        most = self._most if is_causal else self.together
        if not 0 < len(rows) <= most:
            raise BackendError(f"bad batch: {len(rows)} rows, at most {most} are possible")
        if not 0 <= slot < self._num_slots:
            raise BackendError(f"bad batch: sequence id {slot} is not in 0..{self._num_slots - 1}")
