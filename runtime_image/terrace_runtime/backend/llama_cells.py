"""The KV cells of a llama.cpp context: sequences, what they share, and their states as bytes.

Owns: the one context that is open, and the checks of sequence ids that keep an abort from being
reachable. Does not own: which position a token has (``positions.py``), opening and evaluating
(``llama.py``, which is this and more, and hands the binding in), or the format of a state
(``kv.blob``). Next: ``engine.cells`` moves blocks with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from terrace_runtime.backend import Backend, BackendError
from terrace_runtime.backend.positions import Positions, SlotPositions

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
        self._has_placed_images = False
        """Images stand in two dimensions (M-RoPE), so positions are not tokens' indices."""

    def _hold(self, context: Any, params: Any, *, has_scratch: bool) -> None:
        """Use ``context``, opened with ``params``; its last sequence id is for moving blocks."""
        self._context = context
        self._memory = self._lib.llama_get_memory(context)
        self._num_slots: int = params.n_seq_max
        self._scratch = self._num_slots - 1 if has_scratch else None
        self._is_unified = bool(params.kv_unified)
        self._positions = SlotPositions(params.n_seq_max)

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
        held = self._positions[slot]
        if held.is_inside(start):
            return False
        is_cut = bool(self._lib.llama_memory_seq_rm(self._memory, slot, held.of(start), -1))
        if is_cut:
            held.cut(start)
            self._positions.note(slot)
        return is_cut

    @override
    def seq_pos_max(self, slot: int) -> int:
        self._check_slot(slot)
        position = int(self._lib.llama_memory_seq_pos_max(self._memory, slot))
        return self._positions[slot].last_token(position)

    @override
    def seq_cp(self, source: int, target: int, start: int, stop: int) -> None:
        self._check_slot(source)
        self._check_slot(target)
        if self.scratch is None:
            raise BackendError("split KV cannot share cells between sequences")
        if source == self.scratch:
            self._move_on(target, start, stop)
            return
        held, taken = self._positions[source], Positions()
        if held.is_inside(start) or held.is_inside(stop):
            # Rows of an image have one position, so a part of them cannot be named.
            return
        taken.take(held, start, stop, 0)
        first, last = held.of(start), held.of(stop)
        self._lib.llama_memory_seq_cp(self._memory, source, target, first, last)
        self._positions.put(target, taken)

    def _move_on(self, target: int, start: int, stop: int) -> None:
        """What the scratch sequence was given follows what ``target`` holds."""
        assert self.scratch is not None
        self._lib.llama_memory_seq_cp(self._memory, self.scratch, target, -1, -1)
        self._positions[target].take(self._positions[self.scratch], 0, stop - start, start)
        self._positions.note(target)

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
        if slot == self.scratch and self.seq_pos_max(slot) < 0:
            return 0
        address, size = buffer.ctypes.data, buffer.nbytes
        return int(self._functions.state_get(self._context, address, size, slot, 0))

    @override
    def state_set(self, slot: int, state: NDArray[np.uint8]) -> bool:
        self._check_slot(slot)
        address, size = state.ctypes.data, state.nbytes
        is_set = bool(self._functions.state_set(self._context, address, size, slot, 0))
        if self._has_placed_images:
            self._positions.put(slot, Positions.read(state) if is_set else Positions())
        return is_set

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self._num_slots:
            raise BackendError(f"sequence id {slot} is not in 0..{self._num_slots - 1}")
