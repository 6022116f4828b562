"""The case `change`: how long after a user's patch the child is as it should be.

Owns: changes one by one, changes back to back. Does not own: the cluster at rest that it happens in
(``operator_cases.py``), what the cluster itself takes (``operator_floor.py``).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from bench.operator_floor import floor_back_to_back, floor_of_models, floor_one_by_one
from bench.operator_requests import MERGE, AuditLog
from bench.operator_world import OURS, USER, Line, line_of, model_name
from bench.verdict import percentile, significant
from terrace.controller.kinds import MODEL, STATEFULSET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.operator_requests import Asked, Client
    from bench.operator_world import World

CHANGES, BURSTS, BURST = 100, 5, 30
PAUSE_S = 0.5
"""After each change: what it caused (a pod, its node, its start) is over by then."""


async def change(world: World) -> Line:
    """A patch of a model, until the watch shows its set as it should be."""
    seen, log = SetWatch(world.admin), AuditLog(world.audit_path)
    for _ in log.news():
        pass
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(seen.run())
        await seen.started.wait()
        await asyncio.sleep(1.0)
        growing = Growing(world)
        one = [await _change(growing, seen) for _ in range(_some(world, CHANGES))]
        back: list[float] = []
        for _ in range(BURSTS):
            # Sent one after the other, without waiting for what follows from any of them.
            sent = [await growing.patch() for _ in range(BURST)]
            back += await asyncio.gather(*(seen.wait(*each) for each in sent))
            await world.settled(1.0)
        watching.cancel()
    ours = between(log.news())
    floor = await floor_one_by_one(world, len(one))
    floor_back = await floor_back_to_back(world, BURSTS, _some(world, BURST))
    floor_models = await floor_of_models(world, BURSTS, _some(world, BURST))
    figures = {
        "floor_p50_ms": percentile(floor, 50),
        "floor_p99_ms": percentile(floor, 99),
        "burst_floor_p50_ms": percentile(floor_back, 50),
        "burst_floor_p99_ms": percentile(floor_back, 99),
        "burst_models_floor_p50_ms": percentile(floor_models, 50),
        "burst_models_floor_p99_ms": percentile(floor_models, 99),
        "operator_p50_ms": percentile(ours[: len(one)], 50),
        "operator_p99_ms": percentile(ours[: len(one)], 99),
        "p50_ms": percentile(one, 50),
        "p99_ms": percentile(one, 99),
        "burst_p50_ms": percentile(back, 50),
        "burst_p99_ms": percentile(back, 99),
    }
    shown = {name: significant(seconds * 1000) for name, seconds in figures.items()}
    p50, p99 = ((shown[f"{kind}p50_ms"], shown[f"{kind}p99_ms"]) for kind in ("", "burst_"))
    return line_of(
        "change",
        is_ok=p50[0] <= 20 and p50[1] <= 70 and p99[0] <= 20 and p99[1] <= 70,
        target="p50 <= 20 ms, p99 <= 70 ms, also back to back",
        **shown,
        changes=len(one),
        changes_back_to_back=len(back),
    )


def between(asked: Iterable[Asked]) -> list[float]:
    """From each patch's answer to the child's apply reaching the server, by the server's clock."""
    patched: dict[str, Asked] = {}
    found = []
    for each in sorted(asked, key=lambda one: one.received):
        if each.resource == "inferencemodels" and each.user != USER:
            patched[each.name] = each
        model = each.name.rpartition("-")[0]
        if each.resource == "statefulsets" and each.user == USER and model in patched:
            found.append(each.received - patched.pop(model).answered)
    return found


class SetWatch:
    """When the watch showed how many replicas of which model, by this process' clock."""

    def __init__(self, admin: Client) -> None:
        self._admin = admin
        self._seen: dict[tuple[str, int], float] = {}
        self._changed = asyncio.Condition()
        self.started = asyncio.Event()

    async def run(self) -> None:
        self.started.set()
        async for event in self._admin.watch(STATEFULSET.path(OURS)):
            now = time.perf_counter()
            metadata, spec = event["object"]["metadata"], event["object"]["spec"]
            name = metadata["labels"]["terrace.dev/model"]
            self._seen.setdefault((name, spec["replicas"]), now)
            async with self._changed:
                self._changed.notify_all()

    async def wait(self, name: str, replicas: int, began: float) -> float:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: (name, replicas) in self._seen)
        return self._seen[name, replicas] - began


class Growing:
    """Gives one model after another one replica more, as the floor does with bare sets."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._count = 0

    async def patch(self) -> tuple[str, int, float]:
        """The next model's name, its replicas from now on, and when it was sent."""
        around, index = divmod(self._count, self._world.sizes.models)
        self._count += 1
        began = time.perf_counter()
        path = f"{MODEL.path(OURS)}/{model_name(index)}"
        await self._world.admin.send("PATCH", path, {"spec": {"replicas": around + 2}}, MERGE)
        return model_name(index), around + 2, began


async def _change(growing: Growing, seen: SetWatch) -> float:
    seconds = await seen.wait(*await growing.patch())
    await asyncio.sleep(PAUSE_S)
    return seconds


def _some(world: World, count: int) -> int:
    return min(count, world.sizes.models)
