"""The KV cells of a llama.cpp context: sequences, what they share, and their states as bytes.

Owns: the one context that is open, and the checks of sequence ids that keep an abort from being
reachable. Does not own: opening and evaluating (``llama.py``, which is this and more, and hands the
binding in), or the format of a state (``kv.blob``). Next: ``engine.cells`` moves blocks with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from terrace_runtime.backend import Backend, BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.backend.binding import Functions


class LlamaCells(Backend):
    """The part of the port that is about cells; see there for the contract of each method."""

    def __init__(self, lib: Any, functions: Functions) -> None:
        """``lib`` is llama_cpp's low-level module; ``functions`` its calls without checks."""
        self._lib = lib
        self._functions = functions
        self._context: Any = None

    def _hold(self, context: Any, params: Any, *, has_scratch: bool) -> None:
        """Use ``context``, opened with ``params``; its last sequence id is for moving blocks."""
        self._context = context
        self._memory = self._lib.llama_get_memory(context)
        self._num_slots: int = params.n_seq_max
        self._scratch = self._num_slots - 1 if has_scratch else None
        self._is_unified = bool(params.kv_unified)

    def _free_context(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        self._context = None

    @override
    def seq_rm(self, slot: int, start: int = 0) -> bool:
        self._check_slot(slot)
        # Encoders keep nothing between two batches.
        if not self._memory:
            return True
        return bool(self._lib.llama_memory_seq_rm(self._memory, slot, start, -1))

    @override
    def seq_pos_max(self, slot: int) -> int:
        self._check_slot(slot)
        return int(self._lib.llama_memory_seq_pos_max(self._memory, slot))

    @override
    def seq_cp(self, source: int, target: int, start: int, stop: int) -> None:
        self._check_slot(source)
        self._check_slot(target)
        if self.scratch is None:
            raise BackendError("split KV cannot share cells between sequences")
        self._lib.llama_memory_seq_cp(self._memory, source, target, start, stop)

    @property
    @override
    def scratch(self) -> int | None:
        return self._scratch

    @property
    @override
    def is_unified(self) -> bool:
        return self._is_unified

    @override
    def state_size(self, slot: int) -> int:
        self._check_slot(slot)
        return int(self._lib.llama_state_seq_get_size_ext(self._context, slot, 0))

    @override
    def state_get(self, slot: int, buffer: NDArray[np.uint8]) -> int:
        self._check_slot(slot)
        address, size = buffer.ctypes.data, buffer.nbytes
        return int(self._functions.state_get(self._context, address, size, slot, 0))

    @override
    def state_set(self, slot: int, state: NDArray[np.uint8]) -> bool:
        self._check_slot(slot)
        address, size = state.ctypes.data, state.nbytes
        return bool(self._functions.state_set(self._context, address, size, slot, 0))

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self._num_slots:
            raise BackendError(f"sequence id {slot} is not in 0..{self._num_slots - 1}")
