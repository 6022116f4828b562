"""Rounds of ours and the peer's in turns, the peer in the variant that serves the case best.

Owns: finding that variant, the order of the rounds, time limits, the client's process. Does not
own: what is measured (``cases``), what rounds come to (``verdict.py``), servers (``servers.py``).
First every variant plays one round; each metric keeps its own winner. Then ours and the winners
play in turns, all of them up at once, ours first in one round and last in the next. Where a case
is about an empty cache, servers are started anew for each round instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import load, plans
from bench.load import Round
from bench.servers import (
    BEST,
    HOST,
    ServerError,
    Setting,
    llama_server,
    terrace,
    variant_flags,
)
from bench.verdict import Sample, lost, verdict
from build.workshop import BuildError, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from bench.load import Plan
    from bench.verdict import Line, Metric

    Start = Callable[[Path], AbstractContextManager[int]]
    """Runs a server in a folder and gives its port."""
    Play = Callable[[int, int, float], Sample]
    """Measures one round: port, seed, seconds that it may take."""

OURS = "ours"
_ROUND_TIMEOUT_S = 900.0
_SEARCH_PATIENCE = 3.0
"""A variant that takes so many times as long as the fastest so far is given up."""
_LEAST_PATIENCE_S = 30.0
FAILURES = (BuildError, ServerError, OSError)


class RoundFailedError(Exception):
    """A round did not measure anything; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    rounds: int = 5
    is_quick: bool = False
    is_unified: bool = False
    """Ours with the KV layout that is not its default."""
    is_against_itself: bool = False
    limit_s: float = 420.0
    """No new round of a case begins after this long: a busy machine gives fewer rounds."""
    winners: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)
    """What the search found, for the second layout of the same case."""

    def pick(self, whole: int, quick: int) -> int:
        """A count of the case, or the smaller one of a glance."""
        return quick if self.is_quick else whole

    def ours(self, setting: Setting) -> Start:
        """How our side is started."""
        if self.is_against_itself:
            return lambda folder: llama_server(setting, folder, "np")
        return lambda folder: terrace(setting, folder, unified=self.is_unified)

    def best(self, setting: Setting) -> dict[str, Start]:
        """The peer in all its variants."""
        return peers(setting, *BEST[: self.pick(len(BEST), 2)])


@dataclass(frozen=True)
class Contest:
    """What is compared in one case."""

    metrics: tuple[Metric, ...]
    ours: Start
    peers: Mapping[str, Start]
    play: Play
    restarts: bool = False
    """Every round on servers that have just started."""


def peers(setting: Setting, *variants: str) -> dict[str, Start]:
    """How the peer is started, by its flags beyond the common ones."""

    def start(variant: str) -> Start:
        return lambda folder: llama_server(setting, folder, variant)

    return {variant_flags(variant, setting) or "none": start(variant) for variant in variants}


def compare(contest: Contest, options: Options) -> list[Line]:
    """The lines of one case, whatever happens."""
    metrics = contest.metrics
    try:
        winners, tried = _winners(contest, options)
        pairs = _rounds(contest, set(winners.values()), options)
    except (*FAILURES, RoundFailedError) as error:
        return [lost(metric, str(error)) for metric in metrics]
    return [
        verdict(
            metric,
            [(one[OURS], one[winners[metric.id]]) for one in pairs],
            peer_flags=winners[metric.id],
            peer_tried={name: found.get(metric.id) for name, found in tried.items()},
        )
        for metric in metrics
    ]


def play_plan(port: int, plan: Plan, limit_s: float = _ROUND_TIMEOUT_S) -> Round:
    """Run a plan in a process of its own. Raises RoundFailedError."""
    limit_s = min(limit_s, plan.timeout_s)
    argv = [sys.executable, "-m", load.__name__, HOST, str(port)]
    # It needs its own package and nobody else's PYTHONPATH.
    environment = {**os.environ, "PYTHONPATH": str(Path(load.__file__).parents[1])}
    told = json.dumps(asdict(replace(plan, timeout_s=limit_s)))
    try:
        done = subprocess.run(
            argv,
            input=told,
            capture_output=True,
            text=True,
            timeout=limit_s + 30,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise RoundFailedError(f"a round took more than {limit_s:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RoundFailedError(f"a round failed: {last}")
    return Round.from_json(done.stdout)


@contextmanager
def running(start: Start) -> Iterator[int]:
    """A server in a folder of its own, warm: its first batches are behind it."""
    with (
        tempfile.TemporaryDirectory(prefix="terrace-bench-") as folder,
        start(Path(folder)) as port,
    ):
        play_plan(port, replace(plans.at_once(2, 32, 8, seed=999_999), counts_failures=True))
        yield port


def _winners(contest: Contest, options: Options) -> tuple[dict[str, str], dict[str, Sample]]:
    """The best variant by metric, and what each variant reached (nothing: it did not finish)."""
    key = tuple(metric.id for metric in contest.metrics)
    if len(contest.peers) == 1:
        return dict.fromkeys(key, next(iter(contest.peers))), {}
    if key in options.winners:
        return options.winners[key], {}
    tried: dict[str, Sample] = {}
    patience_s = _ROUND_TIMEOUT_S
    why = ""
    for name, start in contest.peers.items():
        started = time.monotonic()
        try:
            with running(start) as port:
                started = time.monotonic()
                tried[name] = contest.play(port, 0, patience_s)
        except (RoundFailedError, ServerError) as error:
            say(f"llama-server {name}: {error}")
            tried[name], why = {}, str(error)
            continue
        say(f"llama-server {name}: {_told(contest, tried[name])}")
        took_s = time.monotonic() - started
        patience_s = min(patience_s, max(_LEAST_PATIENCE_S, _SEARCH_PATIENCE * took_s))
    finished = {name: sample for name, sample in tried.items() if sample}
    if not finished:
        raise RoundFailedError(f"no variant of the peer finished a round: {why}")
    options.winners[key] = {metric.id: metric.best(finished) for metric in contest.metrics}
    return options.winners[key], tried


def _rounds(contest: Contest, winners: set[str], options: Options) -> list[dict[str, Sample]]:
    sides = {OURS: contest.ours, **{name: contest.peers[name] for name in sorted(winners)}}
    found: list[dict[str, Sample]] = []
    started = time.monotonic()
    with ExitStack() as stack:
        ports = {}
        if not contest.restarts:
            ports = {name: stack.enter_context(running(start)) for name, start in sides.items()}
        for seed in range(1, options.rounds + 1):
            if found and time.monotonic() - started > options.limit_s:
                say(f"stopped after {len(found)} rounds: the time is up")
                break
            order: Sequence[str] = list(sides) if seed % 2 else list(reversed(sides))
            found.append({name: _one(contest, name, ports, seed) for name in order})
            told = [f"{name} {_told(contest, sample)}" for name, sample in found[-1].items()]
            say(f"round {seed} of {options.rounds}: {'; '.join(told)}")
    return found


def _told(contest: Contest, sample: Sample) -> str:
    return ", ".join(f"{sample[one.id]:.4g} {one.unit}" for one in contest.metrics)


def _one(contest: Contest, name: str, ports: Mapping[str, int], seed: int) -> Sample:
    if name in ports:
        return contest.play(ports[name], seed, _ROUND_TIMEOUT_S)
    start = contest.ours if name == OURS else contest.peers[name]
    with running(start) as port:
        return contest.play(port, seed, _ROUND_TIMEOUT_S)
