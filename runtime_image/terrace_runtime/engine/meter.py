"""Counters of the engine: how many tokens, how long, how full.

Owns: the sums behind EngineStats. Does not own: where they are shown (``api``). Next: ``core.py``
records each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.engine.request import EngineStats

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from terrace_runtime.engine.batch_planner import BatchPlan
    from terrace_runtime.engine.sequence import Sequence


class StepMeter:
    """Sums since start; a mixed step's time is split by its tokens."""

    def __init__(self, kv_total_tokens: int) -> None:
        """``kv_total_tokens`` is the size of the KV cache."""
        self.steps = 0
        self.generated = 0
        self._kv_total_tokens = kv_total_tokens
        self._batch_tokens = 0
        self._step_seconds = 0.0
        self._prompt_tokens = 0
        self._prompt_seconds = 0.0
        self._generated_seconds = 0.0

    def record(self, plan: BatchPlan, seconds: float) -> None:
        """One step that computed ``plan``."""
        self.steps += 1
        self._batch_tokens = plan.num_tokens
        self._step_seconds = seconds
        if plan.num_tokens:
            prompt_share = seconds * plan.num_prompt_tokens / plan.num_tokens
            self._prompt_tokens += plan.num_prompt_tokens
            self._prompt_seconds += prompt_share
            self._generated_seconds += seconds - prompt_share

    def stats(self, waiting: int, running: Seq[Sequence]) -> EngineStats:
        """The picture now."""
        return EngineStats(
            waiting=waiting,
            running=len(running),
            steps=self.steps,
            batch_tokens=self._batch_tokens,
            step_seconds=self._step_seconds,
            prompt_tokens=self._prompt_tokens,
            prompt_seconds=self._prompt_seconds,
            generated_tokens=self.generated,
            generated_seconds=self._generated_seconds,
            kv_used_tokens=sum(sequence.num_computed for sequence in running),
            kv_total_tokens=self._kv_total_tokens,
        )
