"""`make bench-engine`: our runtime against llama-server, tokens per second of N streams at once.

Owns: the cases, the alternating rounds, the verdicts. Does not own: the servers (``servers.py``),
the client (``load.py``), the models (``models.py``). One JSON object per case and line on stdout:
``decode-N`` is the reference model (mid-q4_0), ``decode-N/MODEL`` each model. ``ours`` and ``peer``
are medians over rounds; ``ratio`` is the median of the rounds' own ratios, because what disturbs a
shared machine disturbs both sides of one round more alike than two rounds. Exits 0 either way.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load import Round
from bench.models import MODELS, model_file
from bench.peer import peer_programs
from bench.servers import HOST, MODEL_NAME, ServerError, Setting, llama_server, terrace
from build.workshop import BuildError, say

if TYPE_CHECKING:
    from collections.abc import Sequence

REFERENCE = "mid-q4_0"
PROMPT_TOKENS = 64
GENERATED_TOKENS = 128
CONTEXT_TOKENS = 256
UNIT = "tokens/s"
TARGETS = {1: 0.95, 4: 0.95, 8: 1.0, 16: 1.0}
"""Least ratio by number of streams."""
_ROUND_TIMEOUT_S = 320


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    models: tuple[str, ...]
    streams: tuple[int, ...]
    rounds: int
    case_limit_s: float
    """No new pair of rounds begins after this long; a busy machine gives fewer rounds."""
    against_itself: bool


class RoundFailedError(Exception):
    """A round did not measure anything; the message says why."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per case."""
    # As an interrupt, so that both servers are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = _parse(arguments)
    try:
        _print_cases(options)
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _print_cases(options: Options) -> None:
    # The reference model first: its lines are the ones that targets are stated for.
    for model in sorted(options.models, key=lambda name: name != REFERENCE):
        for streams in options.streams:
            line = _case(model, streams, options)
            if model == REFERENCE:
                print(json.dumps({"case": f"decode-{streams}", **line}), flush=True)
            print(json.dumps({"case": f"decode-{streams}/{model}", **line}), flush=True)


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="bench-engine",
        description=f"Our runtime against llama-server: {PROMPT_TOKENS} tokens in, "
        f"{GENERATED_TOKENS} out, N streams. Builds llama-server first (about 5 minutes, once).",
    )
    parser.add_argument("--quick", action="store_true", help="two models, three rounds")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one")
    parser.add_argument("--streams", action="append", type=int, choices=list(TARGETS))
    parser.add_argument("--rounds", type=int, help="pairs of rounds per case (9; quick: 3)")
    parser.add_argument(
        "--against-itself",
        action="store_true",
        help="llama-server on both sides: what differs then is this machine's noise",
    )
    given = parser.parse_args(arguments)
    models = given.model or (("tiny-q4_0", REFERENCE) if given.quick else tuple(MODELS))
    rounds = given.rounds or (3 if given.quick else 9)
    if rounds < 1:
        parser.error("argument --rounds: at least 1")
    streams = tuple(given.streams or TARGETS)
    limit_s = 45 if given.quick else 180
    return Options(tuple(models), streams, rounds, limit_s, given.against_itself)


def _case(model: str, streams: int, options: Options) -> dict[str, Any]:
    """The fields of one case's line but its name."""
    target = TARGETS[streams]
    try:
        say(f"decode-{streams}/{model}: {options.rounds} pairs of rounds")
        pairs = _measure(model, streams, options)
    except (BuildError, ServerError, RoundFailedError, OSError) as error:
        lost = {"ours": None, "peer": None, "unit": UNIT, "ratio": None, "rounds": 0}
        return {**lost, "target": target, "ok": False, "why": str(error)}
    return {**verdict(pairs, target), "load_average": round(os.getloadavg()[0], 1)}


def verdict(pairs: Sequence[tuple[Round, Round]], target: float) -> dict[str, Any]:
    """What pairs of rounds, ours and the peer's, come to."""
    ours, peer = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratios = [_speed(mine) / _speed(theirs) for mine, theirs in pairs]
    ratio = statistics.median(ratios)
    return {
        "ours": round(statistics.median(map(_speed, ours)), 1),
        "peer": round(statistics.median(map(_speed, peer)), 1),
        "unit": UNIT,
        "ratio": round(ratio, 3),
        "rounds": len(pairs),
        "target": target,
        "ok": ratio >= target,
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "ours_ms": _latencies(ours),
        "peer_ms": _latencies(peer),
    }


def _measure(model: str, streams: int, options: Options) -> list[tuple[Round, Round]]:
    """Pairs of rounds with both servers up: ours first in one pair, the peer's in the next."""
    setting = Setting(model_file(model), streams, CONTEXT_TOKENS)
    peer_programs()
    start_ours = llama_server if options.against_itself else terrace
    with ExitStack() as stack:
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="terrace-bench-")))
            for _ in range(2)
        ]
        ours = stack.enter_context(start_ours(setting, folders[0]))
        peer = stack.enter_context(llama_server(setting, folders[1]))
        for port in (ours, peer):
            _round(port, streams, seed=0)
        pairs: list[tuple[Round, Round]] = []
        started = time.monotonic()
        for seed in range(1, options.rounds + 1):
            if pairs and time.monotonic() - started > options.case_limit_s:
                say(f"stopped after {len(pairs)} pairs: the machine is busy")
                break
            order = (ours, peer) if seed % 2 else (peer, ours)
            results = {port: _round(port, streams, seed) for port in order}
            pairs.append((results[ours], results[peer]))
        return pairs


def _round(port: int, streams: int, seed: int) -> Round:
    counts = {"--prompt-tokens": PROMPT_TOKENS, "--generated-tokens": GENERATED_TOKENS}
    options = {"--model": MODEL_NAME, "--streams": streams, "--seed": seed, **counts}
    words = [str(word) for pair in options.items() for word in pair]
    argv = [sys.executable, "-m", "bench.load", HOST, str(port), *words]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_ROUND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise RoundFailedError(f"a round took more than {_ROUND_TIMEOUT_S} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RoundFailedError(f"a round failed: {last}")
    return Round(**json.loads(done.stdout))


def _speed(one: Round) -> float:
    return one.tokens / one.seconds


def _latencies(rounds: Sequence[Round]) -> dict[str, float]:
    """Milliseconds over all streams of all rounds."""
    first = [seconds for one in rounds for seconds in one.first_token_s]
    gaps = [seconds for one in rounds for seconds in one.gaps_s]
    values = {
        "ttft_p50": _percentile(first, 50),
        "ttft_p95": _percentile(first, 95),
        "itl_p95": _percentile(gaps, 95),
    }
    return {name: round(seconds * 1000, 1) for name, seconds in values.items()}


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


if __name__ == "__main__":
    main()
