"""What one step computes. There is no prefill phase and no decode phase.

Owns: slots and the choice of tokens: every running sequence's ``num_computed`` catches up with its
tokens under a budget, those that decode first. Does not own: who is admitted (``waiting.py``) or
the batch's memory (``backend``). Pure. The idea is vLLM v1's scheduler. Next: ``core.py`` fills
the batch from the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.engine.waiting import urgency

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from collections.abc import Sequence as Seq

    from terrace_runtime.engine.image_spans import ImageSpan
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.waiting import TenantShares


MAX_GAP = 3
"""Free slots in a row that are worth filling."""


class Work(NamedTuple):
    """The next ``num_tokens`` tokens of ``sequence``, the last ``num_drafted`` of them guessed."""

    slot: int
    sequence: Sequence
    num_tokens: int
    num_drafted: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one step, in tokens."""

    batch_tokens: int
    """All of a step."""
    prefill_tokens: int
    """Prompt tokens of a step in which others decode."""
    fill_holes: bool = True
    """Split KV: give free slots between decoding ones a token to throw away."""
    slots: int = 0
    """Split KV: how many there are, free ones too; 0: none are there for padding."""
    mixes: bool = True
    """Prompts and decodes share a step. In split KV llama.cpp would evaluate them apart all the
    same, and every row of the first part would attend to as many cells as the longest slot has."""

    def halved(self, plan: BatchPlan) -> Budget:
        """Half of a ``plan`` that found no room, for the same step."""
        tokens = max(1, plan.num_tokens // 2)
        return replace(
            self,
            batch_tokens=tokens,
            prefill_tokens=min(tokens, self.prefill_tokens),
            fill_holes=False,
        )


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Work by ascending slot, and the free slots that only keep the order free of gaps."""

    work: list[Work] = field(default_factory=list)
    fillers: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_drafted: int = 0
    filler_tokens: int = 1
    """Tokens of each filler: as many as everybody else has, or it would be an evaluation apart."""
    image: ImageSpan | None = None
    """The work is rows of this piece, and nothing else: llama.cpp takes rows or tokens."""

    @property
    def num_decodes(self) -> int:
        """Sequences that get one token or more."""
        return self.num_tokens - self.num_prompt_tokens - self.num_drafted

    @property
    def is_smallest(self) -> bool:
        """There is no smaller plan that gets on."""
        return self.num_tokens == 1 or (self.image is not None and not self.image.is_causal)

    @property
    def is_decode_only(self) -> bool:
        """One token of each sequence and nothing else: the common step, filled in one go."""
        return not self.fillers and self.num_prompt_tokens == 0 and self.num_drafted == 0


def free_slots(running: Iterable[Sequence], parallel: int) -> list[int]:
    """Slots for a new sequence, ascending.

    llama.cpp evaluates split sequences together only in ascending, gap-free order, so the lowest
    one keeps holes rare and lets arrivals close them.
    """
    taken = {sequence.slot for sequence in running}
    return [slot for slot in range(parallel) if slot not in taken]


def plan_batch(
    running: Seq[Sequence],
    budget: Budget,
    shares: TenantShares,
    *,
    now: float,
    turn: int,
    occupied: Container[int] = (),
    quickest: Callable[[int], int] = int,
) -> BatchPlan:
    """Choose the tokens of the next step.

    ``running`` is sorted by slot. ``turn`` rotates the decoding sequences where they are more than
    the budget. Prompts go by urgency, then the tenant served least, then arrival; an image in one
    is a step of its own. ``occupied`` are free slots whose cells are kept and must not be used as
    fillers. ``quickest``: at how many rows a step that needs so many is quickest.
    """
    work, prompts, images = _by_need(running)
    decodes_wait = bool(work)
    if images:
        # Turn and turn about again.
        if turn % 2 or not (work or prompts):
            return _image_plan(images, budget, shares, now, decodes_wait=decodes_wait)
        turn //= 2
    if decodes_wait and prompts and not budget.mixes:
        # Turn and turn about: nobody's stream waits for more than one chunk.
        if turn % 2:
            work = []
        else:
            prompts = []
        turn //= 2
    if len(work) > budget.batch_tokens:
        work = _window(work, budget.batch_tokens, turn)
    num_decodes = len(work)
    work, num_drafted = _with_drafts(work, budget.batch_tokens - num_decodes)
    num_prompt_tokens = 0
    if prompts:
        room = budget.batch_tokens - num_decodes - num_drafted
        if decodes_wait:
            room = min(room, budget.prefill_tokens)
        chunks = _prompt_chunks(prompts, room, shares, now)
        num_prompt_tokens = sum(chunk.num_tokens for chunk in chunks)
        work = sorted([*work, *chunks])
    num_tokens = num_decodes + num_drafted + num_prompt_tokens
    fillers: list[int] = []
    filler_tokens = min((item.num_tokens for item in work), default=1)
    if budget.fill_holes and num_decodes > 1:
        room = (budget.batch_tokens - num_tokens) // filler_tokens
        fillers = _fillers(work, running, room, occupied)
        if num_tokens == num_decodes:
            rows = num_decodes + len(fillers)
            wanted = min(quickest(rows) - rows, room - len(fillers))
            fillers += _padding(work, running, wanted, budget.slots, occupied)
    return BatchPlan(work, fillers, num_tokens, num_prompt_tokens, num_drafted, filler_tokens)


def _by_need(running: Seq[Sequence]) -> tuple[list[Work], list[Sequence], list[Sequence]]:
    """Those that decode, those whose prompt goes on with text, and those with an image."""
    work: list[Work] = []
    prompts: list[Sequence] = []
    images: list[Sequence] = []
    for sequence in running:
        if sequence.is_idle:
            continue
        if len(sequence.tokens) - sequence.num_computed == 1:
            assert sequence.slot is not None
            work.append(Work(sequence.slot, sequence, 1))
        elif sequence.image is not None:
            images.append(sequence)
        else:
            prompts.append(sequence)
    return work, prompts, images


def _image_plan(
    images: list[Sequence], budget: Budget, shares: TenantShares, now: float, *, decodes_wait: bool
) -> BatchPlan:
    """Rows of one piece: all that are left, of causal ones as many as the room allows."""
    sequence = min(images, key=lambda one: _precedence(one, shares, now))
    span = sequence.image
    assert span is not None
    assert sequence.slot is not None
    count = span.stop - sequence.num_computed
    if span.is_causal:
        prefill = budget.prefill_tokens if decodes_wait else budget.batch_tokens
        count = min(count, prefill, budget.batch_tokens)
    work = [Work(sequence.slot, sequence, count)]
    return BatchPlan(work, num_tokens=count, num_prompt_tokens=count, image=span)


def _precedence(sequence: Sequence, shares: TenantShares, now: float) -> tuple[int, int, int]:
    return urgency(sequence, now), shares.served(sequence.tenant), sequence.order


def _with_drafts(work: list[Work], room: int) -> tuple[list[Work], int]:
    """The guesses of those that have any, as far as the room goes."""
    num_drafted = 0
    for index, item in enumerate(work):
        if item.sequence.draft and room > 0:
            count = min(len(item.sequence.draft), room)
            work[index] = Work(item.slot, item.sequence, 1 + count, count)
            num_drafted += count
            room -= count
    return work, num_drafted


def _window(work: list[Work], size: int, turn: int) -> list[Work]:
    """``size`` neighbours, starting where the turn before left off, so that all get their turn."""
    start = turn * size % len(work)
    return sorted((work + work)[start : start + size])


def _prompt_chunks(
    prompts: list[Sequence], room: int, shares: TenantShares, now: float
) -> list[Work]:
    """Prompts in their order, each as far as the room goes.

    Short ones go first, within half of the room: what they take hardly delays a long one, which
    would delay them by all of its steps.
    """
    chunks = []
    prompts.sort(key=lambda one: _precedence(one, shares, now))
    for sequence in _short_ones_first(prompts, room):
        count = min(room, sequence.num_text_ahead)
        if count <= 0:
            break
        if sequence.stop_at > sequence.num_computed:
            count = min(count, sequence.stop_at - sequence.num_computed)
        assert sequence.slot is not None
        chunks.append(Work(sequence.slot, sequence, count))
        room -= count
    return chunks


def _short_ones_first(prompts: list[Sequence], room: int) -> list[Sequence]:
    left = room // 2
    short = []
    for sequence in prompts:
        if sequence.num_pending <= min(left, room // 4):
            short.append(sequence)
            left -= sequence.num_pending
    return [*short, *(one for one in prompts if one not in short)] if short else prompts


def _fillers(
    work: list[Work], running: Seq[Sequence], room: int, occupied: Container[int]
) -> list[int]:
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
        if not 0 < len(gap) <= min(MAX_GAP, room - len(fillers)):
            continue
        if not any(slot in busy or slot in occupied for slot in gap):
            fillers += gap
    return fillers


def _padding(
    work: list[Work],
    running: Seq[Sequence],
    wanted: int,
    slots: int,
    occupied: Container[int],
) -> list[int]:
    """``wanted`` free slots right behind the planned ones; none where there are fewer."""
    behind = range(work[-1].slot + 1, work[-1].slot + 1 + wanted)
    busy = {sequence.slot for sequence in running}
    is_free = behind.stop <= slots and not any(one in busy or one in occupied for one in behind)
    return list(behind) if is_free else []
