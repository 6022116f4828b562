"""The loop body of a model that embeds: inputs share batches, each ends with its one vector.

Owns: which inputs make up a batch, their slots and ends, and the vectors' length of 1. Does not
own: the order of waiting (``waiting.py``), pooling (llama.cpp, ``backend.embedding``). The same
surface as ``core.EngineCore``; one thread uses it. Next: ``runner.py`` calls ``step``.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.backend.embedding import EMBEDDING_SEQUENCES
from terrace_runtime.contract import EngineReport
from terrace_runtime.engine.detokenizer import PieceTable
from terrace_runtime.engine.open_requests import OpenRequests
from terrace_runtime.engine.request import EngineStats, FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import RequestOutput
    from terrace_runtime.engine.sequence import Sequence


PACK_TOKENS = 128
"""Inputs share a step of the CPU up to so many tokens: every token is scored with every other one
of its step, those of other inputs included (*measured*: 2,850 tokens/s here, 1,730 with 512)."""


class EmbeddingCore:
    """All inputs of one backend, a batch at a time."""

    is_blocked = False
    """Nothing is ever waited for but inputs."""

    def __init__(
        self, backend: Backend, config: RuntimeConfig, *, clock: Callable[[], float]
    ) -> None:
        """``backend`` is loaded and embeds; ``clock`` gives seconds."""
        self.table = PieceTable(backend.info.pieces)
        self._backend = backend
        self._config = config
        self._clock = clock
        self._capacity = backend.batch.capacity
        found = backend.info.capabilities
        self._pack = self._capacity if found.has_devices else min(self._capacity, PACK_TOKENS)
        """Tokens from which on a step takes no further input."""
        self._max_inputs = min(EMBEDDING_SEQUENCES, self._capacity)
        self._open = OpenRequests(clock, config.request_timeout_s)
        self._running: list[Sequence] = []
        """Those of this step; afterwards at most one, computed in part."""
        self._stats = EngineStats(kv_total_tokens=self._capacity)

    @property
    def has_work(self) -> bool:
        """Requests are open."""
        return bool(self._open)

    @property
    def stats(self) -> EngineStats:
        """After the last step."""
        return replace(self._stats, waiting=len(self._open.waiting), running=len(self._running))

    def report(self, _: float) -> EngineReport:
        """No tiers, no sequences that last."""
        return EngineReport()

    def chore(self) -> bool:
        """Nothing can wait for an idle moment."""
        return False

    def prepare(self, sequence: Sequence) -> None:
        """Nothing to do beforehand."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence whose prompt is the input. Its id must not be in use."""
        self._open.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request at the start of the next step; unknown ids are ignored."""
        self._open.abort(request_id)

    def abort_all(self) -> None:
        """End everybody at the start of the next step."""
        self._open.abort_all()

    def step(self) -> list[RequestOutput]:
        """Evaluate one batch; raises BackendError when the backend is broken."""
        started = self._clock()
        outputs = [self._end(sequence, why) for sequence, why in self._open.due(started)]
        counts = self._fill(started)
        if not counts:
            return outputs
        code = self._backend.decode()
        if code != DECODE_OK:
            raise BackendError(f"llama.cpp cannot go on: decode returned code {code}")
        for sequence, count in zip(list(self._running), counts, strict=True):
            sequence.num_computed += count
            self._open.shares.charge(sequence.tenant, count)
            if not sequence.num_pending:
                outputs.append(self._embedded(sequence))
        self._record(sum(counts), self._clock() - started)
        return outputs

    # The parts of a step --------------------------------------------------------------------------

    def _fill(self, now: float) -> list[int]:
        """Put inputs into the batch, in order; how many tokens of each of ``_running``."""
        batch = self._backend.batch
        batch.clear()
        counts = [self._put(one) for one in self._running]
        while len(counts) < self._max_inputs:
            sequence = self._open.waiting.head(now)
            # A long input goes alone: at once where it must, for then it fits, or else in steps.
            if sequence is None or (batch.size and batch.size + sequence.num_pending > self._pack):
                break
            self._open.waiting.remove(sequence)
            taken = {one.slot for one in self._running}
            sequence.slot = next(i for i in range(self._max_inputs) if i not in taken)
            sequence.queued_s = now - sequence.arrival
            self._running.append(sequence)
            counts.append(self._put(sequence))
        return counts

    def _put(self, sequence: Sequence) -> int:
        batch = self._backend.batch
        start = sequence.num_computed
        count = min(sequence.num_pending, self._capacity - batch.size)
        assert sequence.slot is not None
        tokens = sequence.tokens[start : start + count]
        batch.extend(tokens, sequence.slot, start, outputs=count)
        return count

    def _embedded(self, sequence: Sequence) -> RequestOutput:
        assert sequence.slot is not None
        vector = unit(self._backend.embedding(sequence.slot))
        if vector is None:
            error = "the model's embedding of this input is not a vector of numbers"
            return self._end(sequence, FinishReason.ERROR, error=error)
        text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return replace(self._end(sequence, FinishReason.STOP), embedding=text)

    def _end(self, sequence: Sequence, finish: FinishReason, *, error: str = "") -> RequestOutput:
        """Forget a sequence and give its slot and cells back."""
        self._open.close(sequence)
        if sequence.slot is not None:
            self._running.remove(sequence)
            self._backend.seq_rm(sequence.slot)
        return sequence.end(finish, error=error)

    def _record(self, num_tokens: int, seconds: float) -> None:
        before = self._stats
        self._stats = replace(
            before,
            steps=before.steps + 1,
            batch_tokens=num_tokens,
            step_seconds=seconds,
            prompt_tokens=before.prompt_tokens + num_tokens,
            prompt_seconds=before.prompt_seconds + seconds,
        )


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """``vector`` with length 1; None for one of no length or not of numbers."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length) or not length:
        return None
    scaled: NDArray[np.float32] = (vector / length).astype(np.float32)
    return scaled
