"""Where prompts of models without blocks stop, so that a state is kept which others can use.

Owns: those positions, and which of them a running sequence is still to come to. Does not own: the
states (``kv/checkpoints.py``), their way (``checkpoint_cells.py``), or what else the beginning of a
prompt could come from (``prefix.py``, which asks).

A whole state cannot be cut: it is of use only to prompts that begin with all of it. So besides
those at intervals and at a prompt's end, one is kept where a prompt parts from another, which runs
or came before: the third to come with a common beginning computes none of it, and of those that
come together the first alone does. Keeping states where the tree of prompts branches is the idea of
Marconi (Pan et al., 2024, "Prefix caching for the era of hybrid LLMs").
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from terrace_runtime.engine.image_spans import whole_blocks
from terrace_runtime.kv.checkpoints import next_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Seq

    from terrace_runtime.contract import KvTiers
    from terrace_runtime.engine.batch_planner import BatchPlan
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.kv.checkpoints import CheckpointStore

LEAST_GAIN = 64
"""Fewer tokens are worth no state of their own: it is copied as a whole, for each who uses it."""
MAX_SEEN = 16_384
"""Blocks of earlier prompts that are remembered, by their keys alone: about 3 MB."""


class Stops:
    """See the module. On the engine's thread."""

    def __init__(self, kv: KvTiers, store: CheckpointStore) -> None:
        self._kv = kv
        self._store = store
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._branches: dict[Sequence, set[int]] = {}

    def ahead(self, leader: Sequence, common: int) -> int:
        """How many of ``common`` first tokens a state of ``leader`` can still cover; 0: none."""
        at = self._whole(leader, common)
        # One that is gone before it is used would have been waited for in vain, by each in turn.
        return at if at > leader.num_computed and self._store.has_room_for_two else 0

    def begin(self, sequence: Sequence, usable: Seq[bytes], stored: int) -> None:
        """It gets its slot, with a state of ``stored`` tokens: note where it parts from others.

        ``usable`` are the keys of the blocks before its last token.
        """
        num_seen = next((n for n, key in enumerate(usable) if key not in self._seen), len(usable))
        # The last ones first: what two prompts share outlives what one has alone.
        for key in reversed(usable):
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        at = self._whole(sequence, num_seen * self._kv.block_tokens)
        if at >= stored + LEAST_GAIN:
            self.add(sequence, at)

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Have it keep a state of its first ``num_tokens``."""
        self._branches.setdefault(sequence, set()).add(num_tokens)

    def forget(self, sequence: Sequence) -> None:
        """It ended; a stranger is a no-op."""
        self._branches.pop(sequence, None)

    def set(self, group: Seq[Sequence]) -> None:
        """Where the next chunk of each ends at the latest."""
        for one in group:
            one.stop_at = min((at for at in self._next(one) if at > one.num_computed), default=0)

    def reached(self, plan: BatchPlan) -> Iterator[Sequence]:
        """Those whose state is to be kept after a step."""
        for item in plan.work:
            sequence = item.sequence
            if sequence.slot is not None and sequence.num_computed == sequence.stop_at:
                yield sequence

    def _next(self, sequence: Sequence) -> Iterator[int]:
        kv = self._kv
        at = next_checkpoint(
            sequence.num_computed, len(sequence.tokens), kv.checkpoint_tokens, kv.block_tokens
        )
        yield self._whole(sequence, at or 0)
        yield from self._branches.get(sequence, ())

    def _whole(self, sequence: Sequence, count: int) -> int:
        """Whole blocks of ``count`` tokens, as far as they end in no image."""
        return whole_blocks(sequence.images.spans, count, self._kv.block_tokens)
