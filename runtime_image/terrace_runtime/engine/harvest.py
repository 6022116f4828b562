"""What a step's logits come to: new tokens, and which guesses were right.

Owns: the walk over a plan's outputs, verification of guesses, cutting the cells of wrong ones.
Does not own: the plan (``batch_planner.py``) or samplers (``sampling.py``). Guesses are verified by
sampling: one is right iff the sequence's own sampler takes the same token there, so the output is
what it would be without. Next: ``core.py`` hands the tokens out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.engine.request import FinishReason
from terrace_runtime.engine.sampling import logprobs_of, pick, pick_few, sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend
    from terrace_runtime.backend.shortlist import Shortlist
    from terrace_runtime.engine.batch_planner import BatchPlan, Work
    from terrace_runtime.engine.sequence import Sequence


class Gain(NamedTuple):
    """What one sequence got."""

    sequence: Sequence
    num_drafted: int
    num_accepted: int
    """Guesses that were right; it got one token more than these."""
    finish: FinishReason | None


class _Row(NamedTuple):
    """Where the logits of a sequence begin."""

    work: Work
    output: int
    """Row among the outputs."""
    batch: int
    """Row in the batch."""


class Harvest:
    """Turns the logits of the last decode into tokens."""

    def __init__(self, backend: Backend) -> None:
        """``backend`` has just decoded the plan that ``gather`` gets."""
        self._backend = backend
        self._eog = backend.info.eog
        self._few: Shortlist | None = None
        """While the rows of the last decode hold their likeliest tokens alone."""

    def gather(self, plan: BatchPlan) -> list[Gain]:
        """Note what was computed, sample whoever is complete, verify guesses."""
        rows = list(_rows(plan))
        if not rows:
            return []
        logits = self._backend.logits()
        shortlist = self._backend.shortlist
        self._few = shortlist if shortlist is not None and shortlist.is_on else None
        if plan.num_drafted:
            return [self._verify(row, logits) for row in rows]
        sequences = [row.work.sequence for row in rows]
        samplers = [one.sampler for one in sequences]
        if self._few is None:
            tokens = sample(logits, [row.batch for row in rows], samplers)
        else:
            chosen = zip(rows, samplers, strict=True)
            tokens = [pick_few(self._few, row.batch, sampler) for row, sampler in chosen]
        gains = []
        for row, sequence, token in zip(rows, sequences, tokens, strict=True):
            finish = self._append(sequence, token, logits, row.output)
            gains.append(Gain(sequence, 0, 0, finish))
        return gains

    def _append(
        self, sequence: Sequence, token: int, logits: NDArray[np.float32], row: int
    ) -> FinishReason | None:
        if sequence.wants_logprobs:
            count = sequence.request.sampling.logprobs or 0
            sequence.logprobs.append(logprobs_of(logits[row], token, count, self._backend.info))
        finish = sequence.append(token, is_eog=token in self._eog)
        return FinishReason.ERROR if sequence.error else finish

    def _verify(self, row: _Row, logits: NDArray[np.float32]) -> Gain:
        slot, sequence, _, num_drafted = row.work
        draft = sequence.draft[:num_drafted]
        sequence.draft.clear()
        base = sequence.num_computed - num_drafted
        finish: FinishReason | None = None
        accepted = 0
        for index in range(num_drafted + 1):
            at = row.output + index
            if self._few is None:
                token = pick(logits[at], row.batch + index, sequence.sampler)
            else:
                token = pick_few(self._few, row.batch + index, sequence.sampler)
            finish = self._append(sequence, token, logits, at)
            if finish is not None or index == num_drafted or token != draft[index]:
                break
            accepted += 1
        sequence.num_computed = base + accepted
        if accepted < num_drafted:
            self._backend.seq_rm(slot, sequence.num_computed)
        return Gain(sequence, num_drafted, accepted, finish)


def _rows(plan: BatchPlan) -> Iterator[_Row]:
    """Whose last known token was computed; moves everybody's count along."""
    batch = output = 0
    fillers = iter(plan.fillers)
    filler = next(fillers, None)
    for work in plan.work:
        while filler is not None and filler < work.slot:
            batch += plan.filler_tokens
            filler = next(fillers, None)
        sequence = work.sequence
        sequence.num_computed += work.num_tokens
        batch += work.num_tokens
        if sequence.num_computed - work.num_drafted == len(sequence.tokens):
            count = 1 + work.num_drafted
            yield _Row(work, output, batch - count)
            output += count
