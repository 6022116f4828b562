"""The engine's loop body: cancels, places, a plan, one decode, samples, one hand-off.

Owns: the running sequences, their slots, and each request's one end. Does not own: threads and
processes (``runner.py``), the order of work (``batch_planner.py``, ``waiting.py``), cells that
outlive a step (``prefix.py``), what comes of a step's logits (``harvest.py``). One thread uses it.
Next: ``runner.py`` calls ``step`` while there is work.
"""

from __future__ import annotations

from bisect import insort
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from terrace_runtime.backend import DECODE_NO_ROOM
from terrace_runtime.contract import EngineReport, SpeculationReport
from terrace_runtime.engine.adapters import AdapterTurns
from terrace_runtime.engine.batch_planner import BatchPlan, Budget, free_slots, plan_batch
from terrace_runtime.engine.costs import MIN_CHUNK, StepCosts
from terrace_runtime.engine.detokenizer import PieceTable
from terrace_runtime.engine.evaluation import Evaluation
from terrace_runtime.engine.harvest import Harvest
from terrace_runtime.engine.image_stage import ImageStage
from terrace_runtime.engine.meter import StepMeter
from terrace_runtime.engine.open_requests import OpenRequests
from terrace_runtime.engine.parking import ParkingRule
from terrace_runtime.engine.prefix import PrefixCache
from terrace_runtime.engine.relayout import Relayout
from terrace_runtime.engine.request import FinishReason
from terrace_runtime.engine.sampling import open_sampler
from terrace_runtime.engine.shortlisting import Shortlisting
from terrace_runtime.engine.telling import Telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import EngineStats, RequestOutput
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.speculation import Speculator
    from terrace_runtime.engine.tiers import Tiers


class EngineCore:
    """All requests of one backend, a step at a time."""

    def __init__(
        self,
        backend: Backend,
        config: RuntimeConfig,
        tiers: Tiers,
        *,
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
        costs: StepCosts | None = None,
        speculator: Speculator | None = None,
        images: ImageStage | None = None,
    ) -> None:
        """``backend`` is loaded. ``clock`` gives seconds; ``draw_seed`` a seed for who has none."""
        self.images = images or ImageStage(backend)
        self.table = PieceTable(backend.info.pieces)
        self.costs = costs or StepCosts(config.prefill_tokens)
        self.prefix = PrefixCache(backend, config, tiers, clock)
        self.speculator = speculator
        self._backend = backend
        self._config = config
        self._clock = clock
        self._draw_seed = draw_seed
        self._evaluation = Evaluation(backend, self.prefix)
        self._harvest = Harvest(backend)
        self._telling = Telling(config.stream_interval_s)
        self._shortlisting = Shortlisting(backend.shortlist)
        self._open = OpenRequests(clock, config.request_timeout_s)
        self._shares, self._waiting = self._open.shares, self._open.waiting
        self._running: list[Sequence] = []
        self._parking = ParkingRule(config.reader_pace, self.costs, tiers)
        self._turns = AdapterTurns(backend.info.adapter_switch_s)
        cells = config.kv_cells if config.kv_unified else 0
        self._meter = StepMeter(cells or config.parallel * config.context_tokens)
        self._relayout = Relayout(backend, config, self.prefix, clock)

    @property
    def has_work(self) -> bool:
        """Requests are open."""
        return bool(self._open)

    @property
    def is_blocked(self) -> bool:
        """A step would compute nothing until blocks come from the disk, or rows of an image."""
        is_idle = bool(self._running) and all(one.is_idle for one in self._running)
        return is_idle and not self._telling.has_untold

    @property
    def stats(self) -> EngineStats:
        """After the last step."""
        return self._meter.stats(len(self._waiting), self._running)

    @property
    def running(self) -> list[Sequence]:
        """Whoever has a slot."""
        return self._running

    def report(self, now: float) -> EngineReport:
        """Tiers, sequences and speeds."""
        return EngineReport(
            cache=self._relayout.told(self.prefix.report()),
            speculation=self.speculator.report if self.speculator else SpeculationReport(),
            images=self.images.report,
            sequences=tuple(one.report(now) for one in self._running),
            step_seconds=self.costs.table(),
        )

    def prepare(self, sequence: Sequence) -> None:
        """What can be done for a new sequence on any other thread."""
        self.prefix.prepare(sequence)

    def add(self, sequence: Sequence) -> None:
        """Queue a prepared sequence. Its id must not be in use."""
        self._open.add(sequence)
        self.prefix.enter(sequence)
        self.images.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request at the start of the next step; unknown ids are ignored."""
        self._open.abort(request_id)

    def abort_all(self) -> None:
        """End everybody at the start of the next step."""
        self._open.abort_all()

    def step(self) -> list[RequestOutput]:
        """Move everybody on by one decode; raises BackendError when the backend is broken."""
        started = self._clock()
        self.prefix.tiers.poll()
        outputs = [self._end(sequence, why) for sequence, why in self._open.due(started)]
        if not self._change_layout(started):
            self._admit(started)
        others_run = any(not one.is_idle for one in self._running)
        self.prefix.restores.advance(others_run=others_run)
        self.prefix.trim(somebody_runs=bool(self._running))
        for sequence, why in self.images.advance(started):
            outputs.append(self._end(sequence, FinishReason.ERROR, why))
        self._shortlisting.update(self._running, started)
        group = self._choose_group(started)
        self._guess(group)
        drafted_at = self._clock()
        plan = self._plan(group, self._budget(group), started)
        if self.speculator is not None and not plan.num_decodes:
            # A turn of prompts alone: guesses of now would be stale when their turn comes.
            for one in group:
                one.draft.clear()
        while plan.work and self._evaluation.decode(plan) == DECODE_NO_ROOM:
            outputs += self._make_room(plan)
            group = [one for one in group if one.slot is not None]
            plan = self._plan(group, self._budget(group).halved(plan), started)
        outputs += self._advance(plan)
        now = self._clock()
        self._note(plan, now - drafted_at)
        self._meter.record(plan, now - started)
        return outputs

    def chore(self) -> bool:
        """Do one thing that can wait for an idle moment; False: there is none."""
        return self.prefix.chore()

    # Who ends, who begins -------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        self._waiting.release(self.prefix.is_released)
        self._waiting.wake(now)
        has_parked = False
        while True:
            free = free_slots(self._running, self._config.parallel)
            if self._waiting.is_empty and not (free and self._waiting.wake()):
                return
            if not free:
                if has_parked or not self._park_for_head(now):
                    return
                has_parked = True
                continue
            sequence = self._waiting.pop(now)
            assert sequence is not None
            if self._running and not self.prefix.has_cells_for(sequence, self._running):
                self._waiting.push_front(sequence)
                return
            for slot in free:
                self._evaluation.drop_filler(slot)
            place = self.prefix.place(sequence, free)
            if place is None:
                self._waiting.hold(sequence)
            else:
                self._start(sequence, place, now)

    def _change_layout(self, now: float) -> bool:
        """Have the cells that suit the open requests; True: not yet, and nobody may begin."""
        coming = self._waiting.some(self._config.parallel - len(self._running))
        is_due = self._relayout.is_due(self._open.news, chain(self._running, coming), now)
        if not is_due or not self._relayout.is_ready(self._running):
            # Restores end within steps; a host tier that is too small will not grow.
            return is_due and bool(self.prefix.restores)
        for one in sorted(self._running, key=lambda each: each.order, reverse=True):
            self.prefix.unload(one)
            self._set_aside(one)
        self._evaluation.drop_fillers()
        self._relayout.change()
        if self.speculator is not None:
            self.speculator.use_layout(unified=self._backend.is_unified)
        return False

    def _start(self, sequence: Sequence, slot: int, now: float) -> None:
        sequence.slot = slot
        sequence.rests_until = 0.0
        if not sequence.is_resumed:
            sequence.queued_s = now - sequence.arrival
        if sequence.sampler is None:
            sequence.sampler = open_sampler(
                self._backend, sequence.request.sampling, sequence.text, self._draw_seed()
            )
        insort(self._running, sequence, key=attrgetter("slot"))

    def _park_for_head(self, now: float) -> bool:
        """Set a sequence aside that may wait, for the first in the queue."""
        head = self._waiting.head(now)
        assert head is not None
        found = self._parking.choose(self._running, head, now)
        if found is not None:
            self._park(found.sequence, found.rests_until)
        return found is not None

    # The parts of a step --------------------------------------------------------------------------

    def _choose_group(self, now: float) -> list[Sequence]:
        """Those that run in this step: llama.cpp applies one adapter to a whole batch."""
        if not self._config.adapters:
            return self._running
        current = self._turns.current
        ready = [one for one in self._running if not one.is_idle]
        adapter = self._turns.choose(ready, now)
        if adapter != current:
            self._backend.use_adapter(adapter)
        return [one for one in self._running if one.adapter == adapter]

    def _guess(self, group: list[Sequence]) -> None:
        if self.speculator is not None:
            decoding = [one for one in group if one.num_pending == 1 and not one.is_restoring]
            room = self._config.batch_tokens - len(decoding)
            self.speculator.propose(decoding, room)

    def _budget(self, group: list[Sequence]) -> Budget:
        num_decodes = sum(one.num_pending == 1 for one in group)
        return Budget(
            self._config.batch_tokens,
            self.costs.prefill_room(num_decodes, len(group) - num_decodes),
            # A slot between those of one adapter may be another one's.
            fill_holes=not self._backend.is_unified and len(group) == len(self._running),
            mixes=self._backend.is_unified,
            slots=self._config.parallel,
        )

    def _plan(self, group: list[Sequence], budget: Budget, now: float) -> BatchPlan:
        self.prefix.set_stops(group)
        return plan_batch(
            group,
            budget,
            self._shares,
            now=now,
            turn=self._meter.steps,
            occupied=self.prefix.untouchable,
            quickest=self.costs.quickest_rows,
        )

    def _advance(self, plan: BatchPlan) -> list[RequestOutput]:
        """Sample whoever is complete and hand the new tokens out."""
        for item in plan.work:
            self._shares.charge(item.sequence.tenant, item.num_tokens - item.num_drafted)
        gains = self._harvest.gather(plan)
        for sequence, drafted, accepted, _ in gains:
            self._meter.generated += accepted + 1
            if self.speculator is not None and drafted:
                self.speculator.observe(sequence, drafted, accepted)
        is_steady = plan.num_decodes == len(self._open) and not plan.num_prompt_tokens
        outputs = self._telling.tell(gains, self._clock(), self._end, is_steady=is_steady)
        self.prefix.computed(plan)
        return outputs

    def _note(self, plan: BatchPlan, seconds: float) -> None:
        rows = plan.num_decodes + plan.num_drafted + len(plan.fillers) * plan.filler_tokens
        self.costs.record(rows, plan.num_prompt_tokens, seconds)
        if plan.num_prompt_tokens >= MIN_CHUNK and not plan.num_decodes:
            self.prefix.tiers.observe_prefill(plan.num_prompt_tokens, seconds)
        if self.speculator is not None and plan.num_decodes and not plan.num_prompt_tokens:
            self.speculator.step(rows, seconds)

    def _make_room(self, plan: BatchPlan) -> list[RequestOutput]:
        """KV is full and nothing was computed: set aside whom it hurts least, the last one ends."""
        self._evaluation.drop_fillers()
        if plan.num_drafted:
            # Without its guesses the step may fit, and nobody need be set aside for them.
            for item in plan.work:
                item.sequence.draft.clear()
            return []
        if self.prefix.residents:
            self.prefix.residents.drop_all()
            return []
        if len(self._running) > 1:
            self._park(max(self._running, key=lambda one: (one.priority, one.order)))
        elif plan.is_smallest:
            last = self._running[0]
            if last.num_generated:
                return [self._end(last, FinishReason.LENGTH)]
            reason = f"the KV cache is full after {last.num_computed} of {last.num_prompt} tokens"
            return [self._end(last, FinishReason.ERROR, reason)]
        return []

    def _park(self, sequence: Sequence, rests_until: float = 0.0) -> None:
        """Set a running sequence aside in the host tier; it goes on when there is room."""
        self.prefix.park(sequence)
        sequence.rests_until = rests_until
        self._set_aside(sequence)

    def _set_aside(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.slot = None
        sequence.num_computed = 0
        sequence.draft.clear()
        self._waiting.put_back(sequence)

    def _end(self, sequence: Sequence, finish: FinishReason, error: str = "") -> RequestOutput:
        """Forget a sequence, give its slot and sampler back; its cells stay for whoever comes."""
        self._open.close(sequence)
        output = sequence.end(finish, error=error)
        self._telling.forget(sequence)
        if sequence.slot is not None:
            self._running.remove(sequence)
            self.prefix.leave(sequence)
            sequence.slot = None
        self.prefix.gone(sequence)
        self.images.forget(sequence)
        if self.speculator is not None:
            self.speculator.forget(sequence)
        if sequence.sampler is not None:
            sequence.sampler.close()
        if not self._running:
            self._evaluation.drop_fillers()
        return output
