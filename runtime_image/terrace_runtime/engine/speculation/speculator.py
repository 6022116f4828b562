"""What the engine's core calls: guesses before a step, what came of them after it.

Owns: the way from sources and controller to ``sequence.draft``, and the counters. Does not own:
verification (``core.py``). Used by the engine's thread alone.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, assert_never

from terrace_runtime.backend import BackendError
from terrace_runtime.contract import SpeculationReport
from terrace_runtime.engine.batch_planner import MAX_GAP
from terrace_runtime.engine.costs import StepCosts
from terrace_runtime.engine.speculation.controller import Candidate, Controller
from terrace_runtime.engine.speculation.sources import DraftSource, NgramSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.sequence import Sequence

_MAX_MISSING = 24
"""Tokens that the draft model may have yet to read and still guesses at once."""
_ANSWER_TOKENS = 128.0
"""Expected length of an answer before any ended."""
_ANSWER_WEIGHT = 0.05


class Speculator:
    """Order of calls in a step: ``propose``, the decode, ``observe`` each sequence, ``step``.

    In split KV llama.cpp evaluates sequences together only as far as they have equally many rows,
    so there all drafts of a step have the same length, filled up with worthless tokens, and so
    have fillers between the slots. The core gives up on drafts by emptying ``sequence.draft``;
    then the step is not judged.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        controller: Controller,
        source: NgramSource | DraftSource,
        clock: Callable[[], float],
        *,
        unable: str = "",
    ) -> None:
        """``unable`` says why nothing can ever be guessed here."""
        self._config = config
        self._controller = controller
        self._source = source
        self._clock = clock
        self._unable = unable
        self._guesses: dict[str, tuple[int, int]] = {}
        """Strength and number of real guesses of each sequence in this step."""
        self._draft_seconds = 0.0
        self._look_seconds = 0.0
        self._read_seconds = 0.0
        self._answer_tokens = _ANSWER_TOKENS
        self._drafted = 0
        self._accepted = 0

    def propose(self, decoding: list[Sequence], room: int) -> None:
        """Set ``draft`` of every sequence in ``decoding`` (sorted by slot; one pending token each).

        ``room``: rows that the step has left for guesses.
        """
        for sequence in decoding:
            sequence.draft.clear()
        self._guesses.clear()
        self._draft_seconds = self._look_seconds = self._read_seconds = 0.0
        if self._unable or not decoding:
            return
        if self._controller.is_resting or room <= 0:
            self._controller.rest(len(decoding))
            return
        started = self._clock()
        if isinstance(self._source, NgramSource):
            self._propose_ngrams(self._source, decoding, room)
        else:
            self._propose_drafts(self._source, decoding, room)
        spent_elsewhere = self._draft_seconds + self._read_seconds
        self._look_seconds = self._clock() - started - spent_elsewhere

    def observe(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """``accepted`` of the first ``drafted`` tokens of the draft were right."""
        strength, num_real = self._guesses.get(sequence.id, (0, 0))
        drafted, accepted = min(drafted, num_real), min(accepted, num_real)
        self._drafted += drafted
        self._accepted += accepted
        self._controller.observe(sequence.id, strength, drafted, accepted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended, or lost its slot."""
        self._answer_tokens += _ANSWER_WEIGHT * (sequence.num_generated - self._answer_tokens)
        self._source.forget(sequence)
        self._controller.forget(sequence.id)

    def use_layout(self, *, unified: bool) -> None:
        """The KV cells are of this layout from now on."""
        self._controller.needs_equal_lengths = not unified

    def step(self, rows: int, seconds: float) -> None:
        """A step without prompt tokens is over: ``rows`` with guesses and fillers.

        ``seconds`` are those that ``StepCosts.record`` gets: without the time of ``propose``.
        """
        self._controller.step(rows, seconds, self._draft_seconds, self._look_seconds)

    @property
    def report(self) -> SpeculationReport:
        """For ``GET /v1/runtime``."""
        return SpeculationReport(
            mode=self._config.speculation.mode,
            is_active=self._controller.is_active and not self._unable,
            reason=self._unable or self._controller.reason,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    def _propose_ngrams(self, source: NgramSource, decoding: list[Sequence], room: int) -> None:
        guesses = source.guess(decoding, [self._most(one) for one in decoding])
        candidates = [
            self._candidate(sequence, len(guess.tokens), guess.strength)
            for sequence, guess in zip(decoding, guesses, strict=True)
        ]
        lengths = self._controller.choose(candidates, room, self._num_fillers(decoding))
        for sequence, guess, length in zip(decoding, guesses, lengths, strict=True):
            self._draft(sequence, guess.tokens, length, guess.strength)

    def _propose_drafts(self, source: DraftSource, decoding: list[Sequence], room: int) -> None:
        ready = {one.id for one in decoding if self._is_ready(source, one, len(decoding))}
        candidates = [
            self._candidate(one, self._most(one) if one.id in ready else 0) for one in decoding
        ]
        lengths = self._controller.choose(candidates, room, self._num_fillers(decoding))
        drafting = [
            sequence
            for sequence, candidate, length in zip(decoding, candidates, lengths, strict=True)
            if length and candidate.max_tokens
        ]
        if not drafting:
            return
        guesses, seconds = source.guess(drafting, max(lengths))
        self._draft_seconds += seconds
        by_id = {one.id: guess for one, guess in zip(drafting, guesses, strict=True)}
        for sequence, candidate, length in zip(decoding, candidates, lengths, strict=True):
            guess = by_id.get(sequence.id, [])[: candidate.max_tokens]
            self._draft(sequence, guess, length, 0)

    def _is_ready(self, source: DraftSource, sequence: Sequence, count: int) -> bool:
        """The draft model knows the sequence; if it does not, let it read on where that pays."""
        missing = source.num_missing(sequence)
        if missing <= _MAX_MISSING:
            return True
        remaining = min(sequence.limit - len(sequence.tokens), int(self._answer_tokens))
        if self._read_seconds or not self._controller.is_worth(
            source.read_seconds(missing), count, remaining
        ):
            return False
        self._read_seconds = source.catch_up(sequence)
        self._controller.charge(self._read_seconds, count)
        return source.num_missing(sequence) <= _MAX_MISSING

    def _candidate(self, sequence: Sequence, count: int, strength: int = 0) -> Candidate:
        left = max(0, sequence.limit - len(sequence.tokens) - 1)
        return Candidate(sequence.id, count, strength, left)

    def _most(self, sequence: Sequence) -> int:
        """Guesses that the sequence can still use: the step itself gives one token more."""
        return max(
            0,
            min(self._config.speculation.max_tokens, sequence.limit - len(sequence.tokens) - 1),
        )

    def _num_fillers(self, decoding: list[Sequence]) -> int:
        """Free slots between those that decode, as far as the batch planner fills them."""
        if not self._controller.needs_equal_lengths:
            return 0
        slots = [one.slot for one in decoding if one.slot is not None]
        gaps = [after - before - 1 for before, after in pairwise(slots)]
        return min(len(slots), sum(gap for gap in gaps if gap <= MAX_GAP))

    def _draft(self, sequence: Sequence, guess: list[int], length: int, strength: int) -> None:
        real = guess[:length]
        self._guesses[sequence.id] = (strength, len(real))
        sequence.draft = real + [sequence.tokens[-1]] * (length - len(real))


def speculator(
    config: RuntimeConfig,
    backend: Backend,
    costs: StepCosts,
    clock: Callable[[], float] = time.perf_counter,
) -> Speculator | None:
    """The speculator that ``config`` asks for, or None; ``backend`` is loaded."""
    mode: Literal["off", "ngram", "draft"] = config.speculation.mode
    unable = ""
    if not backend.info.capabilities.can_cut:
        unable = "this model's KV cells cannot be cut, so a wrong guess could not be taken back"
    source: NgramSource | DraftSource
    draft_costs: StepCosts | None = None
    match mode:
        case "off":
            return None
        case "ngram":
            source = NgramSource(config.parallel)
        case "draft":
            if backend.drafter is None:
                raise BackendError("speculation.mode is draft, but no draft model was loaded")
            draft_costs = StepCosts(config.prefill_tokens)
            source = DraftSource(backend.drafter, draft_costs, clock)
        case _:
            assert_never(mode)
    controller = Controller(
        costs,
        config.speculation.max_tokens,
        needs_equal_lengths=not config.kv_unified,
        draft_costs=draft_costs,
    )
    return Speculator(config, controller, source, clock, unable=unable)
