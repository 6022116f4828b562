"""Moving whole states between a slot's cells and the checkpoints, for models without blocks.

Owns: saving and restoring at the positions that checkpoints have. Does not own: cells that can be
cut into blocks (``cells.py``), or how many checkpoints there are (``kv/checkpoints.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from terrace_runtime.engine.cells import CellMover

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import Backend
    from terrace_runtime.engine.cells import Restore
    from terrace_runtime.kv.checkpoints import CheckpointStore


class CheckpointMover(CellMover):
    """Whole states at chosen positions, for models whose cells cannot be cut into blocks."""

    def __init__(self, backend: Backend, checkpoints: CheckpointStore, block_tokens: int) -> None:
        # It stages nothing: a state goes straight into and out of its own buffer.
        self._backend = backend
        self._checkpoints = checkpoints
        self._block_tokens = block_tokens

    @override
    def save(self, slot: int, keys: Seq[bytes], num_tokens: int) -> None:
        """Keep the state when the slot holds exactly these blocks."""
        is_whole = num_tokens == len(keys) * self._block_tokens
        if keys and is_whole and self._backend.seq_pos_max(slot) + 1 == num_tokens:
            self._checkpoints.save(
                keys[-1],
                num_tokens,
                self._backend.state_size(slot),
                lambda buffer: self._backend.state_get(slot, buffer),
            )

    @override
    def copy(self, source: int, target: int, num_tokens: int) -> bool:
        return False

    @override
    def advance(self, restore: Restore, budget_bytes: int) -> bool:
        key = restore.keys[-1]
        if not self._checkpoints.has(key):
            return True
        if self._backend.state_set(restore.slot, self._checkpoints.load(key)):
            restore.num_tokens = len(restore.keys) * self._block_tokens
        else:
            self._checkpoints.drop(key)
        return True
