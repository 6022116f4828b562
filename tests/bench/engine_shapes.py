"""The engine's two shapes against each other, and what Python costs in a step.

Owns: the cases ``shape-N/MODEL`` (ours: a child process, peer: the same engine in this process, no
HTTP) and ``step-python-N/MODEL`` (ours: CPU time of the engine's thread outside llama_decode, peer:
the budget). Does not own: the comparison with llama-server (``engine.py``). One JSON object per
case and line on stdout; exits 0 either way. Numbers behind docs/adr/0003. Usage:
``PYTHONPATH=tests python -m bench.engine_shapes [--quick]``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from bench.models import model_file
from bench.stepping import python_seconds_per_step, token_request
from support.engine_builders import DEMO, runtime_config
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.process import ChildEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.frontend import EngineFrontend

STREAMS = (1, 8, 16)
GENERATED_TOKENS = 128
SHAPE_TARGET = 0.95
STEP_BUDGET_US = 150.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per case."""
    parser = argparse.ArgumentParser(prog="engine_shapes", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the demo model alone, three rounds")
    quick = parser.parse_args(arguments).quick
    rounds = 3 if quick else 9
    for model in ("demo",) if quick else ("demo", "tiny-q8_0", "mid-q4_0"):
        path = str(DEMO / "chat.gguf") if model == "demo" else str(model_file(model))
        for streams in STREAMS:
            config = _config(path, streams)
            shapes = asyncio.run(_shapes(config, rounds))
            _print(f"shape-{streams}/{model}", shapes, "tokens/s", SHAPE_TARGET)
            _print_step(f"step-python-{streams}/{model}", _step_costs(config, rounds))


def _config(path: str, streams: int) -> RuntimeConfig:
    return runtime_config(
        model_path=path,
        context_tokens=256,
        parallel=streams,
        batch_tokens=512,
        prefill_tokens=256,
    )


async def _shapes(config: RuntimeConfig, rounds: int) -> list[tuple[float, float]]:
    """Tokens/s of (child, in process), both loaded, in alternating order."""
    child, here = ChildEngine(config), InProcessEngine(config, LlamaBackend())
    await child.start()
    await here.start()
    pairs = []
    for number in range(rounds + 1):
        speeds = {}
        for engine in (child, here) if number % 2 else (here, child):
            speeds[engine] = await _speed(engine, config.parallel, number)
        pairs.append((speeds[child], speeds[here]))
    await child.close()
    await here.close()
    return pairs[1:]


async def _speed(engine: EngineFrontend, streams: int, seed: int) -> float:
    async def read(number: int) -> int:
        name = f"{seed}-{number}"
        request = token_request(name, 100 * seed + number, GENERATED_TOKENS)
        return sum([output.num_tokens async for output in engine.submit(request)])

    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(read, range(streams))))
    return tokens / (time.perf_counter() - started)


def _step_costs(config: RuntimeConfig, rounds: int) -> list[float]:
    """Microseconds of Python per decode-only step, encoding its frame included."""
    return [1e6 * python_seconds_per_step(config, seed) for seed in range(rounds)]


def _print(case: str, pairs: list[tuple[float, float]], unit: str, target: float) -> None:
    ratio = statistics.median(ours / peer for ours, peer in pairs)
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    _line(case, ours, peer, unit, ratio, len(pairs), target, is_ok=ratio >= target)


def _print_step(case: str, costs: list[float]) -> None:
    ours = statistics.median(costs)
    ratio = ours / STEP_BUDGET_US
    _line(case, ours, STEP_BUDGET_US, "us/step", ratio, len(costs), 1.0, is_ok=ratio <= 1)


def _line(
    case: str,
    ours: float,
    peer: float,
    unit: str,
    ratio: float,
    rounds: int,
    target: float,
    *,
    is_ok: bool,
) -> None:
    values: dict[str, Any] = {"case": case, "ours": round(ours, 1), "peer": round(peer, 1)}
    values |= {"unit": unit, "ratio": round(ratio, 3), "rounds": rounds, "target": target}
    print(json.dumps({**values, "ok": is_ok}), flush=True)


if __name__ == "__main__":
    main()
