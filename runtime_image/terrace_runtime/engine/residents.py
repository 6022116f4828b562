"""The device tier: cells that sequences left in their slots.

Owns: which slot holds whose cells, and saving them before they are lost. Does not own: who gets a
slot (``prefix.py``) or how cells are moved (``tiers.py``, ``cells.py``). Cells are saved when the
engine is idle or when they must go, so a stream of short, different requests costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.tiers import Tiers

_MIN_MOVE_TOKENS = 32
"""A slot further up is taken for the cells in it when they are worth so many tokens."""


@dataclass
class Resident:
    """Cells that a sequence left in its slot."""

    tokens: list[int]
    root: bytes
    keys: list[bytes]
    """Of its first blocks, as far as they are known."""
    is_saved: bool = False

    def common_tokens(self, sequence: Sequence, block_tokens: int) -> int:
        """How many first tokens of ``sequence`` these cells hold."""
        if self.root != sequence.root:
            return 0
        blocks = 0
        for ours, theirs in zip(self.keys, sequence.keys, strict=False):
            if ours != theirs:
                break
            blocks += 1
        common = blocks * block_tokens
        limit = min(len(self.tokens), len(sequence.tokens))
        while common < limit and self.tokens[common] == sequence.tokens[common]:
            common += 1
        return common


class Residents:
    """Cells by the free slot that they lie in."""

    def __init__(self, backend: Backend, tiers: Tiers, config: RuntimeConfig) -> None:
        """``tiers`` take what leaves."""
        self._backend = backend
        self._tiers = tiers
        self._block_tokens = config.kv.block_tokens
        self._context_tokens = config.context_tokens
        self._can_cut = backend.info.capabilities.can_cut
        self._keeps = backend.info.capabilities.reuse != "none"
        self._held: dict[int, Resident] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, slot: object) -> bool:
        return slot in self._held

    @property
    def num_tokens(self) -> int:
        """Cells that are kept."""
        return sum(len(resident.tokens) for resident in self._held.values())

    def length(self, slot: int) -> int:
        """Cells in a free slot."""
        resident = self._held.get(slot)
        return len(resident.tokens) if resident is not None else 0

    def add(self, sequence: Sequence) -> None:
        """A sequence leaves its slot; what it computed stays there."""
        assert sequence.slot is not None
        if not sequence.num_computed or not self._keeps:
            self._backend.seq_rm(sequence.slot)
            return
        tokens = sequence.tokens[: sequence.num_computed]
        keys = sequence.keys[: len(tokens) // self._block_tokens]
        self._held[sequence.slot] = Resident(tokens, sequence.root, keys)

    def best(self, sequence: Sequence, free: Seq[int]) -> tuple[int, int]:
        """(slot, first tokens of ``sequence`` in it); 0 tokens: none is of use."""
        best = free[0], 0
        for slot in free:
            resident = self._held.get(slot)
            if resident is None:
                continue
            common = resident.common_tokens(sequence, self._block_tokens)
            # The last token must be computed for its logits.
            common = sequence.whole(min(common, len(sequence.tokens) - 1))
            # Cells that cannot be cut serve only when all of them are wanted.
            if common < len(resident.tokens) and not self._can_cut:
                continue
            # A few tokens (a template's head) are no reason to leave the lowest slot free.
            if common > best[1] and (slot == free[0] or common >= _MIN_MOVE_TOKENS):
                best = slot, common
        return best

    def take(self, slot: int, count: int) -> None:
        """The first ``count`` cells of a slot go to a new sequence; the rest is saved and cut."""
        if count < len(self._held[slot].tokens):
            self.save(slot)
            self._backend.seq_rm(slot, count)
        del self._held[slot]

    def drop(self, slot: int) -> None:
        """Save a slot's cells and empty it; an empty one is left alone."""
        if slot in self._held:
            self.save(slot)
            del self._held[slot]
            self._backend.seq_rm(slot)

    def drop_all(self) -> None:
        """Empty all slots that nobody runs in."""
        for slot in list(self._held):
            self.drop(slot)

    def filler_base(self, slot: int, longest: int, room: int) -> int:
        """Where fillers of a free slot begin: behind the cells that lie there, or at 0.

        A step attends to as many cells as its longest slot has, so cells that are longer than
        everybody's (``longest``) leave, saved; so do those that leave no ``room`` for fillers.
        """
        held = self.length(slot)
        if held <= longest and held + room <= self._context_tokens:
            return held
        self.drop(slot)
        return 0

    def save(self, slot: int) -> None:
        """Have a tier below keep what a slot holds, unless it was done or cannot be done now."""
        resident = self._held[slot]
        if not resident.is_saved and self._tiers.can_save:
            saved = self._tiers.save(slot, resident.root, resident.tokens, resident.keys)
            resident.keys = saved[: len(resident.tokens) // self._block_tokens]
            resident.is_saved = True

    def unsaved(self) -> int | None:
        """A slot whose cells are nowhere else."""
        if self._tiers.store is None:
            return None
        return next((slot for slot, one in self._held.items() if not one.is_saved), None)
