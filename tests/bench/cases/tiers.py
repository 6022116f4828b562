"""What the tiers below the device are worth, and what they must not cost.

Owns: restart-8k, pressure-2x and idle-cache. Ours alone is measured, once with and once without
what the case is about: the peer has no disk tier, and fails or waits where cells run out.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import plans
from bench.cases.case import Case
from bench.comparison import (
    FAILURES,
    Contest,
    RoundFailedError,
    compare,
    play_plan,
    running,
)
from bench.files import device_read_rate, drop_from_page_cache
from bench.load import Ask, Plan, User
from bench.models import model_file
from bench.servers import Setting, engine_report, terrace
from bench.verdict import Metric, Sample, lost, verdict
from build.workshop import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.comparison import Options, Start
    from bench.verdict import Line

MODEL = "mid-q4_0"
RESTART = Metric("restart-8k", "ms", 0.05, less_is_better=True)
PREFIX_TOKENS, OWN_TOKENS = 8000, 30
DISK_BYTES = 4 << 30
PRESSURE = Metric("pressure-2x", "tokens/s", 0.8)
IDLE = Metric("idle-cache", "tokens/s", 0.97)
IDLE_HOST_BYTES = 256 << 20


def _ours(setting: Setting, options: Options) -> Start:
    return lambda folder: terrace(setting, folder, unified=options.is_unified)


# A restart ----------------------------------------------------------------------------------------


def _restart(options: Options) -> list[Line]:
    try:
        rounds = [_one_restart(options, seed) for seed in range(1, options.rounds + 1)]
    except (*FAILURES, RoundFailedError) as error:
        return [lost(RESTART, str(error))]
    return [verdict(RESTART, rounds, peer_flags="ours without a disk tier")]


def _one_restart(options: Options, seed: int) -> tuple[Sample, Sample]:
    """First token of a prefix from disk after a restart, and computed."""
    prefix = plans.digits(seed, options.pick(PREFIX_TOKENS, 1500))
    setting = Setting(model_file(MODEL), 2, options.pick(8192, 2048))
    # On the disk of the cache, for the temporary folder may lie in memory.
    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-disk-", dir=cache_root()) as folder:
        tier = {"disk_bytes": DISK_BYTES, "disk_path": folder}
        with_disk = _ours(replace(setting, changes={"kv": tier}), options)
        with running(with_disk) as port:
            _first_token(port, prefix)
        segments = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        drop_from_page_cache(segments)
        rate = device_read_rate(segments)
        drop_from_page_cache(segments)
        own = plans.digits(-seed, OWN_TOKENS)
        with running(with_disk) as port:
            restored = _first_token(port, prefix + own)
        restored["disk_bytes"] = sum(path.stat().st_size for path in segments)
        restored["device_read_bytes_per_s"] = rate
    with running(_ours(setting, options)) as port:
        computed = _first_token(port, prefix + own)
    return restored, computed


def _first_token(port: int, prompt: str) -> Sample:
    plan = Plan((User((Ask(prompt, 1, len(prompt)),)),))
    (answer,) = play_plan(port, plan).answers
    return {RESTART.id: 1000 * answer.first_token_s, "cached_tokens": answer.cached_tokens}


# Twice the KV there is ----------------------------------------------------------------------------


def _pressure(options: Options) -> list[Line]:
    """The same requests where cells are there for half of them, and where for all."""
    requests = 16
    prompt, generated = options.pick(512, 192), options.pick(128, 48)
    enough = Setting(model_file(MODEL), requests, prompt + generated + 32)
    # Split streams are what a sequence needs, so half the cells are half the sequences.
    half = replace(enough, streams=requests // 2)
    if options.is_unified:
        cells = requests * (prompt + generated) // 2
        half = replace(enough, changes={"kv_cells": cells})
    failed = 0

    def play(port: int, seed: int, limit_s: float) -> Sample:
        nonlocal failed
        plan = plans.at_once(requests, prompt, generated, seed)
        result = play_plan(port, replace(plan, counts_failures=True), limit_s)
        failed += result.failed
        speed = {PRESSURE.id: result.tokens / result.seconds}
        return {**speed, "failed": result.failed, "parks": engine_report(port)["cache"]["parks"]}

    rivals = {"ours with KV for all": _ours(enough, options)}
    contest = Contest((PRESSURE,), _ours(half, options), rivals, play)
    return [
        {**line, "failed": failed, "ok": line["ok"] and not failed}
        for line in compare(contest, options)
    ]


# A full cache that nobody uses --------------------------------------------------------------------


def _idle(options: Options) -> list[Line]:
    streams = 8
    tier = {"host_bytes": IDLE_HOST_BYTES}
    setting = Setting(model_file(MODEL), streams, 2048, changes={"kv": tier})
    start = _ours(setting, options)
    # More than the device's cells and the host tier hold together; a glance fills the device.
    fill = plans.at_once(options.pick(24, streams), options.pick(1600, 400), 1, seed=777)

    @contextmanager
    def filled(folder: Path) -> Iterator[int]:
        with start(folder) as port:
            play_plan(port, fill)
            yield port

    def play(port: int, seed: int, limit_s: float) -> Sample:
        plan = plans.at_once(streams // 2, 64, options.pick(256, 64), seed)
        result = play_plan(port, plan, limit_s)
        report = engine_report(port)["cache"]["tiers"]
        tiers = {f"{tier['name']}_bytes": tier["used_bytes"] for tier in report}
        return {IDLE.id: result.tokens / result.seconds, **tiers}

    return compare(Contest((IDLE,), filled, {"ours, empty": start}, play), options)


CASES = (
    Case((RESTART.id,), _restart),
    Case((PRESSURE.id,), _pressure),
    Case((IDLE.id,), _idle),
)
