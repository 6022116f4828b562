"""What one step computes. There is no prefill phase and no decode phase.

Owns: slots and the choice of tokens: every running sequence's ``num_computed`` catches up with its
tokens under a budget, those that decode first. Does not own: who is admitted (``waiting.py``) or
the batch's memory (``backend``). Pure. The idea is vLLM v1's scheduler. Next: ``core.py`` fills
the batch from the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.engine.waiting import urgency

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Seq

    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.waiting import TenantShares


MAX_GAP = 3
"""Free slots in a row that are worth filling."""


class Work(NamedTuple):
    """The next ``num_tokens`` tokens of ``sequence``."""

    slot: int
    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one step, in tokens."""

    batch_tokens: int
    """All of a step."""
    prefill_tokens: int
    """Prompt tokens of a step in which others decode."""
    fill_holes: bool = True
    """Split KV: give free slots between decoding ones a token to throw away."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Work by ascending slot, and the free slots that only keep the order free of gaps."""

    work: list[Work] = field(default_factory=list)
    fillers: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def is_decode_only(self) -> bool:
        """One token of each sequence and nothing else: the common step, filled in one go."""
        return not self.fillers and self.num_prompt_tokens == 0


def lowest_free_slot(running: Iterable[Sequence], parallel: int) -> int | None:
    """The slot for a new sequence; None when all are taken.

    llama.cpp evaluates split sequences together only in ascending, gap-free order, so the lowest
    slot keeps holes rare and lets arrivals close them.
    """
    taken = {sequence.slot for sequence in running}
    return next((slot for slot in range(parallel) if slot not in taken), None)


def plan_batch(
    running: Seq[Sequence], budget: Budget, shares: TenantShares, *, now: float, turn: int
) -> BatchPlan:
    """Choose the tokens of the next step.

    ``running`` is sorted by slot. ``turn`` rotates the decoding sequences where they are more than
    the budget. Prompts go by urgency, then the tenant served least, then arrival.
    """
    work: list[Work] = []
    prompts: list[Sequence] = []
    for sequence in running:
        if len(sequence.tokens) - sequence.num_computed == 1:
            assert sequence.slot is not None
            work.append(Work(sequence.slot, sequence, 1))
        else:
            prompts.append(sequence)
    if len(work) > budget.batch_tokens:
        work = _window(work, budget.batch_tokens, turn)
    num_decodes = len(work)
    num_prompt_tokens = 0
    if prompts:
        room = budget.batch_tokens - num_decodes
        if num_decodes:
            room = min(room, budget.prefill_tokens)
        chunks = _prompt_chunks(prompts, room, shares, now)
        num_prompt_tokens = sum(chunk.num_tokens for chunk in chunks)
        work = sorted([*work, *chunks])
    num_tokens = num_decodes + num_prompt_tokens
    fillers: list[int] = []
    if budget.fill_holes and num_decodes > 1:
        fillers = _fillers(work, running, budget.batch_tokens - num_tokens)
    return BatchPlan(work, fillers, num_tokens, num_prompt_tokens)


def _window(work: list[Work], size: int, turn: int) -> list[Work]:
    """``size`` neighbours, starting where the turn before left off, so that all get their turn."""
    start = turn * size % len(work)
    return sorted((work + work)[start : start + size])


def _prompt_chunks(
    prompts: list[Sequence], room: int, shares: TenantShares, now: float
) -> list[Work]:
    """Prompts in their order, each as far as the room goes."""
    chunks = []
    prompts.sort(key=lambda one: (urgency(one, now), shares.served(one.tenant), one.order))
    for sequence in prompts:
        count = min(room, sequence.num_pending)
        if count <= 0:
            break
        assert sequence.slot is not None
        chunks.append(Work(sequence.slot, sequence, count))
        room -= count
    return chunks


def _fillers(work: list[Work], running: Seq[Sequence], room: int) -> list[int]:
    """Free slots between planned ones, where filling them costs less than another evaluation.

    A gap splits the batch into two evaluations, each of which reads all weights; a throw-away
    token is one more row. MAX_GAP rows cost about as much as one evaluation (ADR 0003).
    """
    room = min(room, len(work))
    if work[-1].slot - work[0].slot + 1 == len(work) or room <= 0:
        return []
    busy = {sequence.slot for sequence in running}
    fillers: list[int] = []
    for before, after in pairwise(work):
        gap = range(before.slot + 1, after.slot)
        if 0 < len(gap) <= min(MAX_GAP, room - len(fillers)) and busy.isdisjoint(gap):
            fillers += gap
    return fillers
