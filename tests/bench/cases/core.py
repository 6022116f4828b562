"""The engine's loop alone, on the real backend and without HTTP: its own time and its promises.

Owns: step-16 and cancel. Does not own: the engine in a process of its own (``engine_shapes.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.cases.case import Case
from bench.models import model_file
from bench.stepping import opened_core, python_seconds_per_step, token_request
from bench.verdict import Metric, absolute, lost
from support.engine_builders import runtime_config
from terrace_runtime.backend import BackendError

if TYPE_CHECKING:
    from bench.comparison import Options
    from bench.verdict import Line, Sample
    from terrace_runtime.contract import RuntimeConfig

STREAMS = 16
STEP = Metric("step-16", "ms/step", 0.2, less_is_better=True)
CANCEL = Metric("cancel", "steps", 1, less_is_better=True)
_WARM_STEPS = 3


def _config(options: Options, parallel: int) -> RuntimeConfig:
    return runtime_config(
        model_path=str(model_file("tiny-q8_0")),
        context_tokens=512,
        parallel=parallel,
        batch_tokens=512,
        prefill_tokens=256,
        threads=2,
        kv_unified=options.is_unified,
        kv={"host_bytes": 64 << 20},
    )


def _step(options: Options) -> list[Line]:
    """Milliseconds of the engine's thread outside llama_decode, 16 greedy sequences."""
    config = _config(options, STREAMS)
    try:
        costs = [python_seconds_per_step(config, seed) for seed in range(options.rounds)]
    except BackendError as error:
        return [lost(STEP, str(error))]
    samples: list[Sample] = [{STEP.id: 1000 * seconds} for seconds in costs]
    return [absolute(STEP, samples)]


def _cancel(options: Options) -> list[Line]:
    """Steps from a cancel until another request runs in the cells that it held."""
    counts: list[Sample] = [{CANCEL.id: _steps_until_free(options)} for _ in range(options.rounds)]
    return [absolute(CANCEL, counts)]


def _steps_until_free(options: Options) -> int:
    with opened_core(_config(options, parallel=2)) as engine:
        for name in ("stays", "leaves", "waits"):
            engine.add(token_request(name, seed=ord(name[0]), generated_tokens=300))
        for _ in range(_WARM_STEPS):
            engine.core.step()
        assert engine.core.stats.waiting == 1, "the third waits for the cells of the second"
        engine.core.abort("leaves")
        steps = 0
        while engine.core.stats.waiting:
            engine.core.step()
            steps += 1
    return steps


CASES = (
    Case((STEP.id,), _step),
    Case((CANCEL.id,), _cancel),
)
