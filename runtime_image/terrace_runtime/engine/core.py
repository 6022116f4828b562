"""The engine's loop body: cancels, a plan, one decode, samples, one hand-off.

Owns: the running sequences, their slots and KV cells, and each request's one end. Does not own:
threads and processes (``runner.py``), the order of work (``batch_planner.py``, ``waiting.py``).
Used by one thread. Next: ``runner.py`` calls ``step`` while there is work.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from terrace_runtime.backend import DECODE_NO_ROOM, DECODE_OK, BackendError
from terrace_runtime.engine.batch_planner import BatchPlan, Budget, lowest_free_slot, plan_batch
from terrace_runtime.engine.detokenizer import PieceTable
from terrace_runtime.engine.meter import StepMeter
from terrace_runtime.engine.request import FinishReason
from terrace_runtime.engine.sampling import open_sampler, sample
from terrace_runtime.engine.waiting import TenantShares, WaitingQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import EngineStats, RequestOutput
    from terrace_runtime.engine.sequence import Sequence

_FILLER_CELLS = 64
"""Cells that a filler may leave in its slot before they are dropped; dropping costs a call."""


class EngineCore:
    """All requests of one backend, a step at a time."""

    def __init__(
        self,
        backend: Backend,
        config: RuntimeConfig,
        *,
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
    ) -> None:
        """``backend`` is loaded. ``clock`` gives seconds; ``draw_seed`` a seed for who has none."""
        self.table = PieceTable(backend.info.pieces)
        self._backend = backend
        self._config = config
        self._clock = clock
        self._draw_seed = draw_seed
        self._eog = backend.info.eog
        self._budget = Budget(
            config.batch_tokens, config.prefill_tokens, fill_holes=not config.kv_unified
        )
        self._shares = TenantShares()
        self._waiting = WaitingQueue(self._shares)
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._cancelled: list[Sequence] = []
        self._filler_cells: dict[int, int] = {}
        self._is_full = False
        """KV ran out: nobody is admitted until a sequence ends."""
        self._meter = StepMeter(config.parallel * config.context_tokens)
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        """A step would do something."""
        return bool(self._by_id)

    @property
    def stats(self) -> EngineStats:
        """After the last step."""
        return self._meter.stats(len(self._waiting), self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Its id must not be in use."""
        assert sequence.id not in self._by_id, "request ids are unique while they run"
        sequence.arrival = self._clock()
        sequence.order = self._arrivals
        self._arrivals += 1
        self._by_id[sequence.id] = sequence
        self._shares.enter(sequence.tenant)
        self._waiting.push(sequence)

    def abort(self, request_id: str) -> None:
        """End a request at the start of the next step; unknown ids are ignored."""
        sequence = self._by_id.get(request_id)
        if sequence is not None and not sequence.is_aborted:
            sequence.is_aborted = True
            self._cancelled.append(sequence)

    def abort_all(self) -> None:
        """End everybody at the start of the next step."""
        for request_id in list(self._by_id):
            self.abort(request_id)

    def step(self) -> list[RequestOutput]:
        """Move everybody on by one decode; raises BackendError when the backend is broken."""
        started = self._clock()
        outputs = self._apply_cancels()
        self._admit(started)
        plan = self._plan(self._budget, started)
        while plan.work and self._decode(plan) == DECODE_NO_ROOM:
            outputs += self._make_room(plan)
            plan = self._plan(self._reduced(plan), started)
        outputs += self._advance(plan)
        self._meter.record(plan, self._clock() - started)
        return outputs

    # The parts of a step --------------------------------------------------------------------------

    def _apply_cancels(self) -> list[RequestOutput]:
        cancelled, self._cancelled = self._cancelled, []
        alive = [sequence for sequence in cancelled if sequence.id in self._by_id]
        return [self._end(sequence, sequence.end(FinishReason.ABORT)) for sequence in alive]

    def _admit(self, now: float) -> None:
        while len(self._waiting) and not self._is_full:
            slot = lowest_free_slot(self._running, self._config.parallel)
            if slot is None:
                return
            sequence = self._waiting.pop(now)
            assert sequence is not None
            self._drop_filler(slot)
            sequence.slot = slot
            if sequence.sampler is None:
                sequence.sampler = open_sampler(
                    self._backend, sequence.request.sampling, sequence.tokens, self._draw_seed()
                )
            insort(self._running, sequence, key=_slot)

    def _plan(self, budget: Budget, now: float) -> BatchPlan:
        turn = self._meter.steps
        return plan_batch(self._running, budget, self._shares, now=now, turn=turn)

    def _decode(self, plan: BatchPlan) -> int:
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
        code = self._backend.decode()
        if code not in (DECODE_OK, DECODE_NO_ROOM):
            raise BackendError(f"llama.cpp cannot go on: decode returned code {code}")
        return code

    def _fill_mixed(self, plan: BatchPlan) -> None:
        """Prompt chunks, decodes and fillers together, by ascending slot."""
        batch = self._backend.batch
        fillers = list(plan.fillers)
        for slot, sequence, count in plan.work:
            while fillers and fillers[0] < slot:
                self._add_filler(fillers.pop(0))
            start = sequence.num_computed
            stop = start + count
            tokens = sequence.tokens[start:stop]
            batch.extend(tokens, slot, start, outputs=int(stop == len(sequence.tokens)))

    def _add_filler(self, slot: int) -> None:
        cells = self._filler_cells.get(slot, 0)
        if cells >= _FILLER_CELLS:
            self._drop_filler(slot)
            cells = 0
        self._backend.batch.extend([0], slot, cells, outputs=0)
        self._filler_cells[slot] = cells + 1

    def _drop_fillers(self) -> None:
        for slot in list(self._filler_cells):
            self._drop_filler(slot)

    def _drop_filler(self, slot: int) -> None:
        if self._filler_cells.pop(slot, 0):
            self._backend.seq_rm(slot)

    def _advance(self, plan: BatchPlan) -> list[RequestOutput]:
        """Sample whoever is complete and hand the new tokens out."""
        complete: list[Sequence] = []
        rows: list[int] = []
        row = -1
        fillers = iter(plan.fillers)
        filler = next(fillers, None)
        for slot, sequence, count in plan.work:
            while filler is not None and filler < slot:
                row += 1
                filler = next(fillers, None)
            row += count
            sequence.num_computed += count
            self._shares.charge(sequence.tenant, count)
            if sequence.num_computed == len(sequence.tokens):
                complete.append(sequence)
                rows.append(row)
        if not complete:
            return []
        tokens = sample(self._backend.logits(), rows, [one.sampler for one in complete])
        outputs = []
        for sequence, token in zip(complete, tokens, strict=True):
            output = sequence.append(token, is_eog=token in self._eog)
            outputs.append(self._end(sequence, output) if output.finish else output)
        self._meter.generated += len(tokens)
        return outputs

    def _make_room(self, plan: BatchPlan) -> list[RequestOutput]:
        """KV is full and nothing was computed: preempt whom it hurts least, the last one ends."""
        self._drop_fillers()
        if len(self._running) > 1:
            self._preempt(max(self._running, key=lambda one: (one.priority, one.order)))
            self._is_full = True
        elif plan.num_tokens == 1:
            last = self._running[0]
            if last.num_generated:
                return [self._end(last, last.end(FinishReason.LENGTH))]
            reason = f"the KV cache is full after {last.num_computed} of {last.num_prompt} tokens"
            return [self._end(last, last.end(FinishReason.ERROR, error=reason))]
        return []

    def _reduced(self, plan: BatchPlan) -> Budget:
        """Half of a plan that found no room, for this step alone."""
        tokens = max(1, plan.num_tokens // 2)
        return Budget(tokens, min(tokens, self._budget.prefill_tokens), fill_holes=False)

    def _preempt(self, sequence: Sequence) -> None:
        """Take the sequence's cells away; it computes them again when there is room."""
        assert sequence.slot is not None
        self._backend.seq_rm(sequence.slot)
        self._running.remove(sequence)
        sequence.slot = None
        sequence.num_computed = 0
        self._waiting.push_front(sequence)

    def _end(self, sequence: Sequence, output: RequestOutput) -> RequestOutput:
        """Forget a sequence and give its slot, cells and sampler back."""
        del self._by_id[sequence.id]
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._backend.seq_rm(sequence.slot)
        if sequence.sampler is not None:
            sequence.sampler.close()
        if not self._running:
            self._drop_fillers()
        self._shares.leave(sequence.tenant)
        self._is_full = False
        return output


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
