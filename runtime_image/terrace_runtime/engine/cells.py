"""Moving KV blocks between a slot's cells and the store, for both cell layouts.

Owns: the one staging buffer through which every byte goes, and a restore's progress. Does not own:
which blocks are worth moving (``prefix.py``) or where they are kept (``kv``). On the engine's
thread; a restore goes on a slice per step, so that other streams' tokens stay evenly spaced.

Split cells: llama.cpp hands out and takes in a sequence as a whole, so blocks are cut from and
joined to a state of the whole sequence. Unified cells: a scratch sequence shares any range of cells
with a slot, so a few blocks at a time suffice. Next: ``prefix.py``; ``checkpoint_cells.py`` is for
models without blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from terrace_runtime.kv.arena import reserve

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.kv.blob import StateLayout
    from terrace_runtime.kv.reading import Reading
    from terrace_runtime.kv.store import KvStore

UNIFIED_BLOCKS = 16
"""Blocks that go through the scratch sequence at once."""


class Restore:
    """The way of a sequence's first blocks into its slot."""

    def __init__(self, sequence: Sequence, keys: list[bytes], wanted: int) -> None:
        """``keys`` of the blocks from the start on, of which ``wanted`` tokens are."""
        self.sequence = sequence
        self.keys = keys
        self.wanted = wanted
        """Fewer than the blocks hold where the prompt goes on otherwise inside the last one."""
        self.reading: Reading | None = None
        self.num_joined = 0
        """Blocks that are staged or already in the slot."""
        self.num_tokens = 0
        """Tokens that are in the slot: what the restore came to when it is done."""
        self.seconds = 0.0
        """Of the engine's time, waiting for the disk not counted."""

    @property
    def slot(self) -> int:
        """Where to."""
        assert self.sequence.slot is not None
        return self.sequence.slot

    def close(self) -> None:
        """Give the blocks back; safe to call twice."""
        if self.reading is not None:
            self.reading.close()
            self.reading = None


class CellMover(ABC):
    """See the module. One restore is under way at a time."""

    def __init__(self, backend: Backend, store: KvStore, layout: StateLayout, tokens: int) -> None:
        """``tokens``: the most that are staged at once."""
        self._backend = backend
        self._store = store
        self._layout = layout
        self._block_tokens = store.block_tokens
        self._staging = _buffer(layout.state_bytes(tokens))

    @property
    def can_save(self) -> bool:
        """No restore holds the staging buffer."""
        return True

    @abstractmethod
    def save(self, slot: int, keys: Seq[bytes], num_tokens: int) -> None:
        """Put those blocks of ``keys``, the slot's first ones, into the store that it lacks.

        The slot holds ``num_tokens``, and the last block may be short.
        """

    @abstractmethod
    def copy(self, source: int, target: int, num_tokens: int) -> bool:
        """Give an empty slot the first tokens of a running one; False: it stays empty."""

    def forget_copy(self) -> None:  # noqa: B027 - only one kind of mover keeps a copy
        """A step begins: what was staged of a running slot is out of date."""

    @abstractmethod
    def advance(self, restore: Restore, budget_bytes: int) -> bool:
        """Go on with ``restore`` for about ``budget_bytes``; True: it is done."""

    def give_up(self, restore: Restore) -> None:
        """Forget a restore that is under way."""
        restore.close()

    def _open(self, restore: Restore) -> bool:
        """Begin to read what is still there of ``restore``; False: it is done, for nothing is."""
        reading = self._store.open(restore.keys, restore.sequence.id, restore.wanted)
        # Since it was found, saving the cells of another slot may have evicted its last blocks.
        restore.reading = reading
        self._shorten(restore, reading.num_blocks)
        if restore.keys:
            return True
        restore.close()
        return False

    def _shorten(self, restore: Restore, num_blocks: int) -> None:
        restore.keys = restore.keys[:num_blocks]
        restore.wanted = min(restore.wanted, num_blocks * self._block_tokens)

    def _missing(self, keys: Seq[bytes]) -> list[int]:
        return [index for index, key in enumerate(keys) if not self._store.has(key)]

    def _cut(
        self,
        state: NDArray[np.uint8],
        indices: Seq[int],
        keys: Seq[bytes],
        num_tokens: int,
        first: int,
    ) -> None:
        """Cut blocks out of ``state``, ``num_tokens`` that begin with block ``first``.

        The last block goes first: where room is short, the beginning of a prefix, without which
        the rest is worth nothing, is the one that stays.
        """
        for index in reversed(indices):
            block = self._store.put(keys[index])
            if block is None:
                return
            start = first * self._block_tokens
            at_token = index * self._block_tokens - start
            count = min(self._block_tokens, num_tokens - at_token)
            self._layout.cut(state, num_tokens, at_token, block, self._block_tokens, start, count)
            self._store.commit(keys[index], is_short=count < self._block_tokens)

    def _take(self, restore: Restore, until: int, budget_bytes: int, first: int, total: int) -> int:
        """Join blocks as they come, up to block ``until``; returns what is left of the budget."""
        reading = restore.reading
        assert reading is not None
        while restore.num_joined < until and budget_bytes > 0:
            found = reading.take()
            if found is None:
                break
            index, block = found
            at_token = (index - first) * self._block_tokens
            count = min(self._block_tokens, total - at_token)
            self._layout.join(self._staging, total, at_token, block, self._block_tokens, count)
            restore.num_joined = index + 1
            budget_bytes -= block.nbytes
        return budget_bytes


class SplitMover(CellMover):
    """Whole sequences at once. The last state that was joined is kept for the next who wants it."""

    def __init__(self, backend: Backend, store: KvStore, layout: StateLayout, tokens: int) -> None:
        super().__init__(backend, store, layout, tokens)
        self._busy: Restore | None = None
        self._staged: tuple[list[bytes], int] | None = None
        """Keys of the blocks, and tokens, whose joined state the buffer holds."""
        self._copied: tuple[int, int, int] | None = None
        """Whose state it holds instead: slot, cells, bytes."""

    @property
    @override
    def can_save(self) -> bool:
        return self._busy is None

    @override
    def save(self, slot: int, keys: Seq[bytes], num_tokens: int) -> None:
        assert self._busy is None, "the staging buffer is taken"
        missing = self._missing(keys)
        if not missing:
            return
        self._staged = self._copied = None
        if self._backend.state_get(slot, self._staging):
            self._cut(self._staging, missing, keys, num_tokens, 0)
        self._store.touch(keys)

    @override
    def copy(self, source: int, target: int, num_tokens: int) -> bool:
        assert self._busy is None, "the staging buffer is taken"
        held = self._backend.seq_pos_max(source) + 1
        if self._copied is None or self._copied[:2] != (source, held):
            self._staged = None
            written = self._backend.state_get(source, self._staging)
            self._copied = (source, held, written)
        state = self._staging[: self._copied[2]]
        if not state.nbytes or not self._backend.state_set(target, state):
            return False
        return held == num_tokens or self._backend.seq_rm(target, num_tokens)

    @override
    def forget_copy(self) -> None:
        self._copied = None

    @override
    def advance(self, restore: Restore, budget_bytes: int) -> bool:
        if self._busy not in (None, restore):
            return False
        if self._busy is None:
            if self._staged == (restore.keys, restore.wanted):
                self._store.use(restore.keys, restore.wanted)
                return self._set(restore)
            if not self._begin(restore):
                return True
        self._take(restore, len(restore.keys), budget_bytes, 0, restore.wanted)
        assert restore.reading is not None
        if restore.num_joined == len(restore.keys):
            restore.close()
            self._staged = restore.keys, restore.wanted
            return self._set(restore)
        if restore.reading.is_failed:
            # What came before the lost block is good; in a shorter state its rows lie elsewhere.
            self._shorten(restore, restore.num_joined)
            self.give_up(restore)
            restore.num_joined = 0
            return not restore.keys
        return False

    @override
    def give_up(self, restore: Restore) -> None:
        super().give_up(restore)
        if self._busy is restore:
            self._busy = None

    def _begin(self, restore: Restore) -> bool:
        if not self._open(restore):
            return False
        self._busy = restore
        self._staged = self._copied = None
        self._layout.begin(self._staging, restore.wanted)
        return True

    def _set(self, restore: Restore) -> bool:
        self._busy = None
        state = self._staging[: self._layout.state_bytes(restore.wanted)]
        if self._backend.state_set(restore.slot, state):
            restore.num_tokens = restore.wanted
        return True


class UnifiedMover(CellMover):
    """A few blocks at a time through the scratch sequence."""

    def __init__(self, backend: Backend, store: KvStore, layout: StateLayout) -> None:
        super().__init__(backend, store, layout, UNIFIED_BLOCKS * store.block_tokens)
        assert backend.scratch is not None
        self._scratch = backend.scratch
        # A save may come while a slice of a restore is staged.
        self._saving = _buffer(layout.state_bytes(UNIFIED_BLOCKS * store.block_tokens))

    @override
    def save(self, slot: int, keys: Seq[bytes], num_tokens: int) -> None:
        missing = self._missing(keys)
        while missing:
            # From the end on, as in _cut, and only neighbours that fit the buffer together.
            last = missing.pop()
            group = [last]
            while missing and missing[-1] > last - UNIFIED_BLOCKS:
                group.append(missing.pop())
            first = group[-1]
            start = first * self._block_tokens
            stop = min((last + 1) * self._block_tokens, num_tokens)
            self._backend.seq_cp(slot, self._scratch, start, stop)
            if self._backend.state_get(self._scratch, self._saving):
                self._cut(self._saving, group[::-1], keys, stop - start, first)
            self._backend.seq_rm(self._scratch)
        self._store.touch(keys)

    @override
    def copy(self, source: int, target: int, num_tokens: int) -> bool:
        self._backend.seq_cp(source, target, 0, num_tokens)
        return True

    @override
    def advance(self, restore: Restore, budget_bytes: int) -> bool:
        if restore.reading is None and not self._open(restore):
            return True
        assert restore.reading is not None
        while budget_bytes > 0:
            first = restore.num_tokens // self._block_tokens
            until = min(first + UNIFIED_BLOCKS, len(restore.keys))
            start, stop = self._range(restore, first, until)
            total = stop - start
            if restore.num_joined == first:
                self._layout.begin(self._staging, total, start)
            budget_bytes = self._take(restore, until, budget_bytes, first, total)
            if restore.num_joined < until:
                if restore.reading.is_failed:
                    restore.close()
                    return True
                return False
            if not self._set(restore, first, until) or until == len(restore.keys):
                restore.close()
                return True
        return False

    def _range(self, restore: Restore, first: int, until: int) -> tuple[int, int]:
        """Tokens of the blocks from ``first`` to before ``until``."""
        return first * self._block_tokens, min(until * self._block_tokens, restore.wanted)

    def _set(self, restore: Restore, first: int, until: int) -> bool:
        start, stop = self._range(restore, first, until)
        state = self._staging[: self._layout.state_bytes(stop - start)]
        is_set = self._backend.state_set(self._scratch, state)
        if is_set:
            self._backend.seq_cp(self._scratch, restore.slot, start, stop)
            restore.num_tokens = stop
        self._backend.seq_rm(self._scratch)
        return is_set


def _buffer(num_bytes: int) -> NDArray[np.uint8]:
    """Memory whose pages are taken when they are used first."""
    return np.frombuffer(reserve(num_bytes), np.uint8)
