"""Restores under way: one after the other, in slices, on the engine's thread.

Owns: their order and what a finished one means for its sequence. Does not own: the bytes
(``cells.py``) or whether a restore pays (``prefix.py``).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from terrace_runtime.engine.cells import Restore
from terrace_runtime.engine.tiers import MIN_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.tiers import Tiers

_SLICE_BYTES = 48 * 1024 * 1024
"""Bytes joined in a step while others decode: some milliseconds."""
_UNBOUNDED = 1 << 62


class Restores:
    """Sequences whose blocks are on their way into their slots."""

    def __init__(self, tiers: Tiers, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds, to measure what a restore costs."""
        self._tiers = tiers
        self._clock = clock
        self._queue: deque[Restore] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def lengthen(self, sequence: Sequence, keys: list[bytes]) -> int:
        """Add a block to ``keys`` that begins with the next few tokens; how many it is in all."""
        count = len(keys) * self._tiers.block_tokens
        # The last token must be computed for its logits.
        stop = min(count + self._tiers.block_tokens, len(sequence.tokens) - 1)
        found = self._tiers.successor(
            keys[-1] if keys else sequence.root, sequence.tokens[count:stop]
        )
        if found is None:
            return count
        total = sequence.whole(count + found[1])
        if total <= count or total < MIN_TOKENS:
            return count
        keys.append(found[0])
        return total

    def start(self, sequence: Sequence, keys: list[bytes], count: int, tier: str) -> None:
        """``sequence`` has its slot; ``count`` tokens of its first blocks follow.

        ``tier`` holds the last of them.
        """
        sequence.is_restoring = True
        if not sequence.is_resumed:
            sequence.cached_tier = tier
        self._queue.append(Restore(sequence, keys, count))

    def advance(self, *, others_run: bool) -> None:
        """Go on, in slices while ``others_run``, so that their tokens keep coming."""
        budget = _SLICE_BYTES if others_run else _UNBOUNDED
        mover = self._tiers.mover
        while self._queue and budget > 0:
            assert mover is not None
            restore = self._queue[0]
            started = self._clock()
            is_done = mover.advance(restore, budget)
            restore.seconds += self._clock() - started
            if not is_done:
                return
            self._queue.popleft()
            self._finish(restore)
            if others_run:
                budget -= len(restore.keys) * self._tiers.block_bytes

    def cancel(self, sequence: Sequence) -> None:
        """``sequence`` leaves its slot; one that is not on its way is left alone."""
        if not sequence.is_restoring:
            return
        sequence.is_restoring = False
        restore = next(one for one in self._queue if one.sequence is sequence)
        self._queue.remove(restore)
        assert self._tiers.mover is not None
        self._tiers.mover.give_up(restore)

    def _finish(self, restore: Restore) -> None:
        sequence = restore.sequence
        self._tiers.observe_restore(restore.num_tokens, restore.seconds)
        self._tiers.release(sequence.id)
        sequence.is_restoring = False
        sequence.num_computed = restore.num_tokens
        if not sequence.is_resumed:
            sequence.num_cached = restore.num_tokens
            if not restore.num_tokens:
                sequence.cached_tier = ""
