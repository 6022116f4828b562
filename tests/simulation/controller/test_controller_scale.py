"""A thousand models at once onto few devices: real workers race, and no device is taken twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from simulation.controller.fake_cluster import FakeCluster
from simulation.controller.simulation import TRUST
from support.controller_objects import MODEL_PATH, condition, facts, model, node, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.cache import Cache
from terrace.controller.config import OperatorConfig
from terrace.controller.context import Context
from terrace.controller.controller import Controller
from terrace.controller.facts import KnownModel, model_status
from terrace.controller.kinds import (
    MODEL,
    NODE,
    POD,
    POOL,
    SECRET,
    STATEFULSET,
    key_of,
    labels_of,
    uid_of,
)
from terrace.controller.metrics import Metrics
from terrace.controller.progress import ProgressReader
from terrace.controller.report import Reports

if TYPE_CHECKING:
    from terrace.controller.kinds import Kind, Manifest

GPU = "nvidia.com/gpu"
DEVICES = {"big": (10, 8), "small": (25, 4)}
"""Flavor -> nodes and devices of each."""
CAPACITY = {flavor: nodes * each for flavor, (nodes, each) in DEVICES.items()}
WORKERS = 16
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RacingCluster(FakeCluster):
    """Each call lets the other workers go on first, so that their decisions interleave."""

    def __init__(self, rng: Random, now: str) -> None:
        super().__init__(lambda: now)
        self._rng = rng

    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        await self._others()
        return await super().apply(kind, manifest)

    async def get(self, kind: Kind, key: Key) -> Manifest:
        await self._others()
        return await super().get(kind, key)

    async def _others(self) -> None:
        for _ in range(self._rng.randint(0, 3)):
            await asyncio.sleep(0)


class Race:
    """One controller with real workers, on a clock that moves when nobody has anything to do."""

    def __init__(self, seed: int, now: datetime) -> None:
        self.time_s = 0.0
        clock = lambda: self.time_s  # noqa: E731 -- three ports take the same clock
        rng = Random(seed)
        self.cluster = RacingCluster(rng, now.isoformat())
        config = OperatorConfig(pod_name="o", pod_namespace="system", runtime_image="terrace/r:1")
        context = Context(
            self.cluster,
            Cache(),
            config,
            Reports(clock, 1e9),
            ProgressReader(self.cluster, clock, 2.0),
            lambda: now,
        )
        self.controller = Controller(context, clock, rng, Metrics())

    async def settle(self, seconds: float = 30.0) -> None:
        """Until nothing is due for so long."""
        queue, end = self.controller.queue, self.time_s + seconds
        while True:
            self._deliver()
            await asyncio.gather(*(self._work() for _ in range(WORKERS)))
            wait_s = queue.wait_s()
            if self.cluster.events:
                continue
            if wait_s is None or self.time_s + wait_s > end:
                return
            self.time_s += max(wait_s, 0.001)

    async def _work(self) -> None:
        while (item := self.controller.queue.take()) is not None:
            await self.controller.process(item)

    def _deliver(self) -> None:
        while self.cluster.events:
            kind, manifest, is_deleted = self.cluster.events.pop(0)
            self.controller.see(kind, manifest, is_deleted=is_deleted)

    def placed(self) -> Counter[str]:
        """Devices that sets ask for, by flavor."""
        return Counter(
            labels_of(each)[names.LABEL_FLAVOR] for each in self.cluster.of_kind(STATEFULSET)
        )

    def plans(self) -> float:
        """Plans that were worked out so far."""
        registry = self.controller.metrics.registry
        return registry.get_sample_value("terrace_operator_plans_total") or 0.0

    def unplaced(self) -> list[Manifest]:
        return [
            each
            for each in self.cluster.of_kind(MODEL)
            if condition(each, "Placed").get("status") == "False"
        ]


def _flavor(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "accelerator": "nvidia",
        "count": 1,
        "memoryPerDevice": "24Gi",
        "nodeSelector": {"flavor": name},
        "runtimeImage": "terrace/runtime:cuda",
        "host": {"cpu": "10m"},
    }


def _node(flavor: str, index: int, devices: int) -> Manifest:
    joined = node(f"{flavor}-{index}", memory="512Gi", labels={"flavor": flavor})
    joined["status"]["allocatable"][GPU] = str(devices)
    return joined


def _prepare(race: Race, num_models: int) -> None:
    put = race.cluster.put_new
    put(SECRET, TRUST)
    for flavor, (num_nodes, each) in DEVICES.items():
        for index in range(num_nodes):
            put(NODE, _node(flavor, index, each))
    put(POOL, pool() | {"spec": {"flavors": [_flavor(name) for name in DEVICES]}})
    status = model_status(KnownModel(facts(), MODEL_PATH)).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    for index in range(num_models):
        put(MODEL, model(f"m{index}") | {"status": {"model": status}})


def _bind(race: Race) -> None:
    """Every replica gets the first node of its flavor that has a device left."""
    free = {
        each["metadata"]["name"]: int(each["status"]["allocatable"][GPU])
        for each in race.cluster.of_kind(NODE)
    }
    for found in race.cluster.of_kind(STATEFULSET):
        flavor = labels_of(found)[names.LABEL_FLAVOR]
        chosen = next(name for name, left in free.items() if left and name.startswith(flavor))
        free[chosen] -= 1
        template, metadata = found["spec"]["template"], found["metadata"]
        owner = {"kind": "StatefulSet", "name": metadata["name"], "uid": uid_of(found)}
        race.cluster.put_new(
            POD,
            {
                "metadata": {
                    "name": f"{metadata['name']}-0",
                    "namespace": metadata["namespace"],
                    "labels": template["metadata"]["labels"],
                    "ownerReferences": [{**owner, "controller": True}],
                },
                "spec": {**template["spec"], "nodeName": chosen},
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )


@pytest.mark.parametrize("seed", range(2))
async def test_a_thousand_models_at_once_take_every_device_and_none_twice(seed: int) -> None:
    race = Race(seed, NOW)
    _prepare(race, 1000)
    await race.controller.resync()
    await race.settle()
    assert race.placed() == CAPACITY
    unplaced = race.unplaced()
    assert len(unplaced) == 1000 - sum(CAPACITY.values())
    assert all(GPU in condition(each, "Placed")["message"] for each in unplaced)


async def test_devices_that_become_free_go_to_models_that_wait() -> None:
    race = Race(0, NOW)
    _prepare(race, 300)
    await race.controller.resync()
    await race.settle()
    _bind(race)
    await race.settle()
    assert race.placed() == CAPACITY
    gone = [Key("default", labels_of(each)[names.LABEL_MODEL])
            for each in race.cluster.of_kind(STATEFULSET)[::9]]  # fmt: skip
    for key in gone:
        race.cluster.vanish(MODEL, key)
    await race.settle()
    assert race.placed() == CAPACITY
    assert len(race.unplaced()) == 300 - sum(CAPACITY.values()) - len(gone)


async def test_nodes_that_change_labels_make_no_placed_model_plan_again() -> None:
    race = Race(0, NOW)
    _prepare(race, 60)
    await race.controller.resync()
    await race.settle()
    before = race.plans()
    for found in race.cluster.of_kind(NODE):
        race.cluster.edit(
            NODE, key_of(found), lambda live: live["metadata"]["labels"].update(rack="r1")
        )
    await race.settle()
    assert race.plans() == before


async def test_a_node_that_joins_is_news_to_models_without_a_place_only() -> None:
    race = Race(0, NOW)
    _prepare(race, 200)
    await race.controller.resync()
    await race.settle()
    before, waiting = race.plans(), len(race.unplaced())
    assert waiting == 200 - sum(CAPACITY.values())
    race.cluster.put_new(NODE, _node("big", 99, 8))
    await race.settle()
    assert len(race.unplaced()) == waiting - 8
    # Each that waits looks once; the eight that are placed may look again as their sets appear.
    assert race.plans() - before <= waiting + 8
