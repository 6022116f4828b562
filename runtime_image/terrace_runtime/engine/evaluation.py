"""From a plan to a filled batch and one decode of it.

Owns: the rows of a batch, and the throw-away tokens (fillers) that keep split slots free of gaps.
Does not own: what is planned (``batch_planner.py``) or what comes of it (``harvest.py``). No
per-token Python: rows are slices of numpy arrays. Next: ``core.py`` looks at the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.backend import DECODE_NO_ROOM, DECODE_OK, BackendError

if TYPE_CHECKING:
    from terrace_runtime.backend import Backend
    from terrace_runtime.engine.batch_planner import BatchPlan
    from terrace_runtime.engine.image_spans import ImageSpan
    from terrace_runtime.engine.prefix import PrefixCache

_FILLER_CELLS = 64
"""Cells that a filler may leave in its slot before they are dropped; dropping costs a call."""


class Evaluation:
    """Decodes plans on one backend."""

    def __init__(self, backend: Backend, prefix: PrefixCache) -> None:
        """``prefix`` knows which free slots hold cells that fillers must not harm."""
        self._backend = backend
        self._prefix = prefix
        self._fillers: dict[int, tuple[int, int]] = {}
        """Slot -> (where its fillers begin, how many there are)."""

    def decode(self, plan: BatchPlan) -> int:
        """DECODE_OK or DECODE_NO_ROOM; raises BackendError for anything else."""
        if plan.image is not None:
            return self._checked(self._decode_rows(plan, plan.image))
        batch = self._backend.batch
        batch.clear()
        if plan.is_decode_only:
            sequences = [item.sequence for item in plan.work]
            batch.extend_single(
                [sequence.tokens[-1] for sequence in sequences],
                [item.slot for item in plan.work],
                [sequence.num_computed for sequence in sequences],
            )
        else:
            self._fill_mixed(plan)
        return self._checked(self._backend.decode())

    @staticmethod
    def _checked(code: int) -> int:
        if code not in (DECODE_OK, DECODE_NO_ROOM):
            raise BackendError(f"llama.cpp cannot go on: decode returned code {code}")
        return code

    def _decode_rows(self, plan: BatchPlan, image: ImageSpan) -> int:
        slot, sequence, count, _ = plan.work[0]
        assert sequence.images.rows is not None
        start = sequence.num_computed
        first = start - image.start
        return self._backend.decode_embeddings(
            slot,
            start,
            sequence.images.rows[first : first + count],
            is_causal=image.is_causal,
            wants_logits=False,
            grid=image.grid,
            first=first,
        )

    def drop_filler(self, slot: int) -> None:
        """Cut a free slot's fillers off; one without any is left alone."""
        if slot in self._fillers:
            base, _ = self._fillers.pop(slot)
            self._backend.seq_rm(slot, base)

    def drop_fillers(self) -> None:
        """The same for all slots."""
        for slot in list(self._fillers):
            self.drop_filler(slot)

    def _fill_mixed(self, plan: BatchPlan) -> None:
        """Prompt chunks, decodes, guesses and fillers together, by ascending slot."""
        batch = self._backend.batch
        fillers = list(plan.fillers)
        for slot, sequence, count, num_drafted in plan.work:
            while fillers and fillers[0] < slot:
                self._add_filler(fillers.pop(0), plan)
            start = sequence.num_computed
            stop = start + count - num_drafted
            tokens = sequence.tokens[start:stop] + sequence.draft[:num_drafted]
            outputs = 1 + num_drafted if stop == len(sequence.tokens) else 0
            batch.extend(tokens, slot, start, outputs=outputs)
        for slot in fillers:
            self._add_filler(slot, plan)

    def _add_filler(self, slot: int, plan: BatchPlan) -> None:
        base, count = self._fillers.get(slot, (0, _FILLER_CELLS))
        if count + plan.filler_tokens > _FILLER_CELLS:
            self.drop_filler(slot)
            longest = max(item.sequence.num_computed for item in plan.work)
            base, count = self._prefix.residents.filler_base(slot, longest, _FILLER_CELLS), 0
        tokens = [0] * plan.filler_tokens
        self._backend.batch.extend(tokens, slot, base + count, outputs=0)
        self._fillers[slot] = (base, count + plan.filler_tokens)
