"""An EngineCore on the real backend, stepped by hand, and what Python costs in a step.

Owns: opening it as the engine's own thread does, requests of random tokens, telling Python's time
from llama.cpp's. Does not own: what is made of it (``cases/core.py``, ``engine_shapes.py``).
"""

from __future__ import annotations

import random
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.core import EngineCore
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.messages import Stepped, encode_event
from terrace_runtime.engine.request import Request, SamplingParams
from terrace_runtime.engine.tiers import Tiers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace_runtime.contract import RuntimeConfig

PROMPT_TOKENS = 64
_WARM_STEPS, _MEASURED_STEPS = 8, 100


class TimedBackend(LlamaBackend):
    """Sums the CPU time that the calling thread spends in decode."""

    decode_s = 0.0

    def decode(self) -> int:
        started = time.thread_time()
        code = super().decode()
        self.decode_s += time.thread_time() - started
        return code


@dataclass(frozen=True)
class Engine:
    """A loaded engine that runs when it is told to."""

    core: EngineCore
    backend: TimedBackend
    config: RuntimeConfig

    def add(self, request: Request) -> None:
        """Queue a request as the intake does."""
        sequence = make_sequence(request, self.backend, self.core.table, self.config)
        self.core.prepare(sequence)
        self.core.add(sequence)


@contextmanager
def opened_core(config: RuntimeConfig) -> Iterator[Engine]:
    """Load the model and build the loop around it."""
    backend = TimedBackend()
    backend.load(config)
    tiers = Tiers(backend, config)
    core = EngineCore(backend, config, tiers, clock=time.monotonic, draw_seed=lambda: 1)
    try:
        yield Engine(core, backend, config)
        core.abort_all()
        core.step()
    finally:
        tiers.close(1.0)
        backend.close()


def token_request(name: str, seed: int, generated_tokens: int) -> Request:
    """A greedy request of PROMPT_TOKENS random tokens."""
    draw = random.Random(seed)
    return Request(
        id=name,
        prompt_tokens=tuple(draw.randrange(300, 1500) for _ in range(PROMPT_TOKENS)),
        sampling=SamplingParams(temperature=0, ignore_eos=True),
        max_tokens=generated_tokens,
    )


def python_seconds_per_step(config: RuntimeConfig, seed: int) -> float:
    """CPU seconds of a step outside llama_decode, every slot decoding, its frame included.

    The median of many: a step in which another program took the core's caches is not typical.
    """
    generated = _WARM_STEPS + 2 * _MEASURED_STEPS
    with opened_core(config) as engine:
        core, backend = engine.core, engine.backend
        for number in range(config.parallel):
            engine.add(token_request(str(number), 100 * seed + number, generated))
        while core.stats.generated_tokens < _WARM_STEPS * config.parallel:
            core.step()
        costs = []
        for _ in range(_MEASURED_STEPS):
            backend.decode_s, started = 0.0, time.thread_time()
            encode_event(Stepped(core.step(), core.stats))
            costs.append(time.thread_time() - started - backend.decode_s)
        return statistics.median(costs)
