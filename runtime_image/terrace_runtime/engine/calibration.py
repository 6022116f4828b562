"""The first step costs, measured when the engine starts and before anybody waits.

Owns: which sizes are tried within a bound of time, and the batches for it. Does not own: what is
made of the numbers (``costs.py``), which every later step keeps true. Next: ``runner.py`` calls it
once, between load and Ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.backend import DECODE_OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.costs import StepCosts

BOUND_S = 1.5
_TRIED_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
_REPEATS = 3
_CHUNK = 64
"""Prompt tokens of the trial chunk."""


def calibrate(
    backend: Backend,
    config: RuntimeConfig,
    costs: StepCosts,
    clock: Callable[[], float],
    bound_s: float = BOUND_S,
) -> None:
    """Fill ``costs`` from trial steps on empty slots; all cells are dropped again.

    The ends come first, then a prompt chunk, then what lies between, as far as ``bound_s`` allows:
    a step is begun only if a cost like those before fits, so a slow model gets fewer points.
    """
    # The first step reads weights from disk, and the first in each slot touches its memory first:
    # that happens once and says nothing of later steps.
    _step(backend, config, config.parallel, 0)
    _drop_all(backend, config)
    stop = clock() + bound_s
    trials = [(rows, 0) for rows in _sizes(config)]
    trials[1:1] = [trials.pop(), (0, min(_CHUNK, config.batch_tokens, config.context_tokens))]
    slowest_row = 0.0
    for rows, chunk in trials:
        for _ in range(_REPEATS):
            started = clock()
            if started + slowest_row * (rows + chunk) > stop or not _step(
                backend, config, rows, chunk
            ):
                break
            seconds = clock() - started
            costs.record(rows, chunk, seconds)
            slowest_row = max(slowest_row, seconds / (rows + chunk))
            _drop_all(backend, config)
    _drop_all(backend, config)


def _sizes(config: RuntimeConfig) -> list[int]:
    """Numbers of rows that a step without prompt tokens can have and that are worth a trial.

    More rows than slots are equally many of each, as guesses are.
    """
    most = min(config.max_outputs, config.batch_tokens)
    sizes = {min(config.parallel, most), most - most % min(config.parallel, most)}
    for tried in _TRIED_ROWS:
        rows = tried if tried <= config.parallel else tried - tried % config.parallel
        if rows <= most:
            sizes.add(rows)
    return sorted(sizes)


def _step(backend: Backend, config: RuntimeConfig, rows: int, chunk: int) -> bool:
    batch = backend.batch
    batch.clear()
    if chunk:
        batch.extend([0] * chunk, 0, 0, outputs=1)
    for slot in range(min(rows, config.parallel)):
        count = max(1, rows // config.parallel)
        batch.extend([0] * count, slot, 0, outputs=count)
    if backend.decode() != DECODE_OK:
        return False
    backend.logits()
    return True


def _drop_all(backend: Backend, config: RuntimeConfig) -> None:
    for slot in range(config.parallel):
        backend.seq_rm(slot)
