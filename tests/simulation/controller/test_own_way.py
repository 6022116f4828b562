"""Replicas of another flavor that need what the model's own older ones have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from simulation.controller.scenarios import POOL_KEY, quiet_writes, replicas
from simulation.controller.test_controller_devices import GPU, Devices, limits
from simulation.controller.workloads import Workloads
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import MODEL, POD, POOL, STATEFULSET, Kind, key_of, labels_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace.controller.kinds import Manifest

GPU_FLAVOR = {"accelerator": "nvidia", "minResidenceSeconds": 5}
CPU_FLAVOR = {"name": "cpu"}


BACKOFF_S = 10.0
"""kube-scheduler tries a pod that it found no node for again after so long at most."""


class Scheduled(Workloads):
    """Replicas have a node when a device is free; those of no device at once."""

    waits_since_s: float | None = None
    """Since when a device is free that a replica waits for."""
    clock: Callable[[], float]

    def _add_pod(self, kind: Kind, owner: Manifest, name: str, phase: str) -> None:
        super()._add_pod(kind, owner, name, phase)
        if kind == STATEFULSET:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu",
                "lastTransitionTime": self._now(),
            }

            def unbind(live: Manifest) -> None:
                del live["spec"]["nodeName"]
                live["status"]["conditions"] = [condition]

            self._cluster.edit(POD, Key(owner["metadata"]["namespace"], name), unbind)

    def step(self) -> bool:
        return self._bind() or super().step()

    def _bind(self) -> bool:
        pods = [pod for pod in self._cluster.of_kind(POD) if names.LABEL_FLAVOR in labels_of(pod)]
        is_taken = any(GPU in limits(pod) for pod in pods if pod["spec"].get("nodeName"))
        for pod in pods:
            if pod["spec"].get("nodeName") or (is_taken and GPU in limits(pod)):
                continue
            if self.waits_since_s is None:
                self.waits_since_s = self.clock()
            if GPU in limits(pod) and self.clock() < self.waits_since_s + BACKOFF_S:
                continue
            self.waits_since_s = None

            def bind(live: Manifest) -> None:
                live["spec"]["nodeName"] = "node-a"
                live["status"]["conditions"] = []

            self._cluster.edit(POD, key_of(pod), bind)
            return True
        return False


class OneDevice(Devices):
    def __init__(self, *flavors: dict[str, Any]) -> None:
        super().__init__()
        self.workloads = self.scheduled = Scheduled(self.cluster, self._timestamp)
        self.scheduled.clock = lambda: self.time_s
        self.workloads.is_serving = lambda pod: bool(pod["spec"].get("nodeName"))
        self.set_flavors("old", *flavors)

    def _timestamp(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    async def _round(self) -> bool:
        wait_s = self.controller.queue.wait_s()
        is_calm = not self.cluster.events and (wait_s is None or wait_s > BACKOFF_S)
        if is_calm and self.scheduled.waits_since_s is not None:
            self.time_s += BACKOFF_S
            return self.workloads.step()
        return await super()._round()

    def set_flavors(self, name: str, *more: dict[str, Any]) -> None:
        flavors = [{**GPU_FLAVOR, "name": name}, *more]
        self.cluster.edit(POOL, POOL_KEY, lambda live: live["spec"].update(flavors=flavors))

    def placed_on(self) -> str:
        status = self.cluster.objects[MODEL, Key("default", "demo")]["status"]
        return str(status["placement"]["flavor"])

    def flavors(self) -> list[str]:
        return [labels_of(pod)[names.LABEL_FLAVOR] for pod in replicas(self)]


async def renamed(sim: OneDevice, *more: dict[str, Any]) -> None:
    """A model runs on the only device, and its flavor gets another name."""
    sim.add("demo", 0)
    await sim.settle()
    assert sim.flavors() == ["old"]
    sim.set_flavors("new", *more)
    await sim.settle()


@pytest.mark.parametrize("more", [(), (CPU_FLAVOR,)])
async def test_a_flavor_that_is_renamed_keeps_its_model_and_its_only_device(
    more: tuple[dict[str, Any], ...],
) -> None:
    sim = OneDevice(*more)
    await renamed(sim, *more)
    assert (sim.placed_on(), sim.flavors()) == ("new", ["new"])
    assert not any("demo-cpu" in write for write in sim.cluster.writes)
    assert sim.placed("demo")["status"] == "True"
    assert await quiet_writes(sim) == []


async def test_a_kill_at_any_await_leaves_the_device_with_the_new_flavor() -> None:
    calm = OneDevice()
    await renamed(calm)
    for kill_at in range(0, calm.num_checkpoints, 3):
        sim = OneDevice()
        sim.kill_at = kill_at
        await renamed(sim)
        assert (sim.placed_on(), sim.flavors()) == ("new", ["new"]), kill_at
