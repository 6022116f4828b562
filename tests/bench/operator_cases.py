"""What the benchmarks of the operator measure, case by case.

Owns: the cases and their targets. Does not own: the cluster (``operator_world.py``), the peer
(``operator_replay.py``), the options (``operator_scale.py``).
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.operator_change import change
from bench.operator_replay import counted, replay, run_of
from bench.operator_requests import MERGE, AuditLog
from bench.operator_world import (
    IN_FLIGHT,
    OURS,
    PEER,
    USER,
    Line,
    Sizes,
    in_parallel,
    line_of,
    metrics,
    peak_bytes,
    running,
)
from bench.verdict import significant
from build.workshop import say
from terrace.controller.kinds import NODE, STATEFULSET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.operator_world import World
    from cluster.controller_operator import Operator

MB = 1e6
IDLE_S = 60.0
PLANS, LAG = "terrace_operator_plans_total", "terrace_operator_loop_lag_seconds"


# Applying -----------------------------------------------------------------------------------------


async def apply(case: str, sizes: Sizes, rounds: int) -> list[Line]:
    """Create all models at once until every child is applied; the peer makes the same writes."""
    found = [await _apply_round(sizes, number, rounds) for number in range(rounds)]
    ratios = sorted(one["ours_s"] / one["peer_s"] for one in found)
    ratio = ratios[len(ratios) // 2]
    peak = max(one["peak_mb"] for one in found)
    is_small = case != "apply-5000" or peak < 300
    middle = sorted(found, key=lambda one: one["ours_s"] / one["peer_s"])[len(found) // 2]
    return [
        line_of(
            case,
            is_ok=ratio <= 2 and is_small,
            target="<= 2x" + ("; < 300 MB" if case == "apply-5000" else ""),
            ratio=significant(ratio),
            ratio_range=[significant(ratios[0]), significant(ratios[-1])],
            rounds=rounds,
            peak_mb=significant(peak),
            models=sizes.models,
            **{name: value for name, value in middle.items() if name != "peak_mb"},
        )
    ]


async def _apply_round(sizes: Sizes, number: int, rounds: int) -> Line:
    async with running(sizes) as world:
        await world.add_namespace(OURS)
        operator = await started(world)
        say(f"round {number + 1} of {rounds}: {sizes.models} models")
        await fill(world, OURS, operator)
        peak, cpu = peak_bytes(operator), _cpu_s(operator)
        run = run_of(AuditLog(world.audit_path).news(), OURS, sizes.models)
        operator.kill()
        say(f"ours {run.seconds:.1f} s, {len(run.writes)} writes, {cpu:.1f} s of CPU")
        await world.settled()
        await world.add_namespace(PEER)
        await world.settled()
        client = world.peer()
        try:
            peer_s = await replay(world, client, run, OURS, PEER)
        finally:
            await client.close()
        say(f"peer {peer_s:.1f} s")
        return {
            "ours_s": significant(run.seconds),
            "peer_s": significant(peer_s),
            "ours_cpu_s": significant(cpu),
            "writes": counted(run.writes),
            "peak_mb": peak / MB,
        }


async def fill(world: World, namespace: str, operator: Operator) -> None:
    """Create all models; returns when every model has its last child."""
    num = world.sizes.models
    await in_parallel(
        [partial(world.add_model, namespace, index) for index in range(num)], IN_FLIGHT
    )
    limit_s = 60 + num / 5
    deadline = time.monotonic() + limit_s
    while (count := await world.admin.count(STATEFULSET.path(namespace))) < num:
        if time.monotonic() > deadline:
            said = operator.log.read_text()[-2000:]
            raise TimeoutError(f"{count} of {num} sets in {limit_s:g} s: {said}")
        await asyncio.sleep(0.5)


async def started(world: World) -> Operator:
    """An operator that has listed what there is and is done with it."""
    operator = world.operators.start()
    await _until_ready(operator)
    await world.settled()
    return operator


async def _until_ready(operator: Operator) -> None:
    for _ in range(600):
        if operator.process.poll() is not None:
            raise RuntimeError(f"the operator ended: {operator.log.read_text()[-2000:]}")
        try:
            if metrics(operator).get("terrace_operator_leader") == 1:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise TimeoutError("the operator did not start")


# A cluster at rest --------------------------------------------------------------------------------


async def at_rest(sizes: Sizes, wanted: set[str], idle_s: float) -> AsyncIterator[Line]:
    """One cluster with all models ready, and what happens to it then."""
    async with running(sizes) as world:
        await world.add_namespace(OURS)
        operator = await started(world)
        await fill(world, OURS, operator)
        await world.settled()
        ready = await world.num_ready(OURS)
        say(f"{ready} of {sizes.models} models are ready")
        if ready < sizes.models:
            raise AssertionError(f"only {ready} of {sizes.models} models became ready")
        if "idle" in wanted:
            yield await idle(world, operator, idle_s)
        if "change" in wanted:
            yield await change(world)
            await world.settled()
        if "relabel" in wanted:
            yield await relabel(world, operator)


async def idle(world: World, operator: Operator, seconds: float) -> Line:
    """What is written while nothing happens."""
    log, cpu = AuditLog(world.audit_path), _cpu_s(operator)
    for _ in log.news():
        pass
    await asyncio.sleep(seconds)
    wrote = [each for each in log.news() if each.user == USER and each.resource != "leases"]
    return line_of(
        "idle",
        is_ok=not wrote,
        target="0 writes",
        writes_idle=len(wrote),
        seconds=seconds,
        writes=counted(wrote),
        cpu_percent=significant(100 * (_cpu_s(operator) - cpu) / seconds),
        rss_mb=significant(_rss_bytes(operator) / MB),
        peak_mb=significant(peak_bytes(operator) / MB),
    )


async def relabel(world: World, operator: Operator) -> Line:
    """Every node joins the next pool's group, all at once."""
    sizes, before = world.sizes, metrics(operator)

    def patch(index: int) -> Any:
        labels = {"group": f"g{(index + 1) % sizes.pools}", "rack": f"r{index % 7}"}
        path = f"{NODE.path(None)}/node-{index:04}"
        return world.admin.send("PATCH", path, {"metadata": {"labels": labels}}, MERGE)

    began = time.perf_counter()
    await in_parallel([partial(patch, index) for index in range(sizes.nodes)], IN_FLIGHT)
    took = time.perf_counter() - began
    await world.settled()
    after = metrics(operator)
    plans = after.get(PLANS, 0.0) - before.get(PLANS, 0.0)
    lag_ms = 1000 * quantile_above(LAG, before, after, 0.99)
    per_model = plans / sizes.models
    return line_of(
        "relabel",
        is_ok=per_model <= 1 and lag_ms < 100,
        target="<= 1 plan per model; lag p99 < 100 ms",
        plans_per_model=significant(per_model),
        lag_p99_ms=significant(lag_ms),
        nodes=sizes.nodes,
        relabelled_in_s=significant(took),
    )


def quantile_above(
    name: str, before: dict[str, float], after: dict[str, float], share: float
) -> float:
    """The upper bound of a histogram's bucket below which that share of new samples lies."""
    prefix = f'{name}_bucket{{le="'
    counts = {
        float(key[len(prefix) :].rstrip('"}').replace("+Inf", "inf")): value - before.get(key, 0.0)
        for key, value in after.items()
        if key.startswith(prefix)
    }
    total = max(counts.values(), default=0.0)
    if not total:
        raise AssertionError(f"the operator has not measured {name}")
    return min(bound for bound, count in counts.items() if count >= share * total)


# Small things -------------------------------------------------------------------------------------


def _cpu_s(operator: Operator) -> float:
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_bytes(operator: Operator) -> int:
    pages = Path(f"/proc/{operator.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
