"""A llama_batch over numpy arrays, and its logits as numpy rows: no copies, no Python per token.

Owns: the memory that llama.cpp reads a batch from. Does not own: what is put in (``Batch``) or the
binding; ``llama.py`` hands it in, for it alone imports it. Next: ``llama.py`` and ``draft.py``.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from terrace_runtime.backend import BackendError
from terrace_runtime.backend.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class RawBatch:
    """One llama_batch that points at a ``Batch``; its table of sequence ids never changes."""

    def __init__(self, lib: Any, capacity: int) -> None:
        """``lib`` is llama_cpp's low-level module."""
        self.rows = rows = Batch(capacity)
        self._ones = np.ones(capacity, np.int32)
        base = rows.sequences.ctypes.data
        self._sequence_pointers = np.arange(base, base + 4 * capacity, 4, dtype=np.uintp)
        self._shifted = np.zeros(capacity, np.int32)
        self._raw = raw = lib.llama_batch()
        raw.n_tokens = 0
        raw.token = pointer(rows.tokens, ctypes.c_int32)
        raw.embd = None
        self._positions = raw.pos = pointer(rows.positions, ctypes.c_int32)
        self._others = pointer(self._shifted, ctypes.c_int32)
        raw.n_seq_id = pointer(self._ones, ctypes.c_int32)
        raw.seq_id = pointer(self._sequence_pointers, ctypes.POINTER(ctypes.c_int32))
        raw.logits = pointer(rows.outputs, ctypes.c_int8)

    @property
    def raw(self) -> Any:
        """The struct with as many tokens as ``rows`` has now."""
        self._raw.n_tokens = self.rows.size
        self._raw.pos = self._positions
        return self._raw

    def shifted(self, shifts: NDArray[np.int32]) -> Any:
        """The same with positions by as much more as ``shifts`` has for their sequence."""
        raw, rows, size = self.raw, self.rows, self.rows.size
        np.add(rows.positions[:size], shifts[rows.sequences[:size]], out=self._shifted[:size])
        raw.pos = self._others
        return raw


class LogitRows:
    """llama.cpp's logits of the last decode as a float32 array."""

    def __init__(
        self, get_logits: Callable[[Any], int | None], capacity: int, columns: int
    ) -> None:
        """``get_logits`` gives an address; ``capacity`` rows of ``columns`` lie there at most."""
        self._get_logits = get_logits
        self._shape = (capacity, columns)
        self._address = 0

    def read(self, context: Any, num_rows: int) -> NDArray[np.float32]:
        """The first ``num_rows`` rows: a view, gone with the next decode."""
        address = self._get_logits(context)
        if not address:
            raise BackendError("llama.cpp has no logits for the last batch")
        if address != self._address:
            memory = (ctypes.c_float * (self._shape[0] * self._shape[1])).from_address(address)
            self._view: NDArray[np.float32] = np.ctypeslib.as_array(memory).reshape(self._shape)
            self._address = address
        return self._view[:num_rows]


def pointer(array: NDArray[Any], kind: Any) -> Any:
    """What C reads ``array`` by; holds it."""
    return array.ctypes.data_as(ctypes.POINTER(kind))
