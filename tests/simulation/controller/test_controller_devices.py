"""Models that want the same devices, on a cluster that fails: the strongest has them, and alone."""

from __future__ import annotations

from typing import Any

import pytest

from simulation.controller.scenarios import POOL_KEY, quiet_writes, replicas
from simulation.controller.simulation import Simulation
from support.controller_objects import condition, model, node, pool
from terrace.api.names import Key
from terrace.controller.kinds import MODEL, NODE, POD, POOL, is_deleting, key_of, labels_of, uid_of

GPU = "nvidia.com/gpu"
LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
    "nvidia.com/gpu.memory": "81920",
    "nvidia.com/gpu.replicas": "1",
}
RESIDENCE_S = 5
DRAIN_S = 40


class Devices(Simulation):
    """One node with devices; says when they had more clients than there are."""

    def __init__(self, seed: int = 0, *, devices: int = 1, **config: Any) -> None:
        super().__init__(seed, **config)
        self.devices = devices
        self.most_clients = 0
        self.cluster.drains = True
        self._drains: dict[str, float] = {}
        self.cluster.vanish(NODE, Key("", "node-a"))
        bare = node("node-a", cpu="64", memory="256Gi", labels=LABELS, devices={GPU: devices})
        self.cluster.put_new(NODE, bare)
        flavor = {"name": "gpu", "accelerator": "nvidia", "minResidenceSeconds": RESIDENCE_S}
        self.cluster.put_new(POOL, pool() | {"spec": {"flavors": [flavor]}})

    async def _round(self) -> bool:
        moved = await super()._round()
        if self._drain() and not moved:
            self.time_s += DRAIN_S
            moved = True
        clients = sum(GPU in limits(pod) for pod in replicas(self))
        self.most_clients = max(self.most_clients, clients)
        return moved

    def _drain(self) -> bool:
        """Replicas that were told to go have gone after a while; False: none is on its way."""
        leaving = [pod for pod in self.cluster.of_kind(POD) if is_deleting(pod)]
        for pod in leaving:
            if self._drains.setdefault(uid_of(pod), self.time_s) + DRAIN_S <= self.time_s:
                self.cluster.vanish(POD, key_of(pod))
        return bool(leaving)

    def add(self, name: str, priority: int) -> None:
        self.cluster.put_new(MODEL, model(name, priority=priority))

    def holders(self) -> set[str]:
        return {labels_of(pod)["terrace.dev/model"] for pod in replicas(self)}

    def placed(self, name: str) -> dict[str, Any]:
        return condition(self.cluster.objects[MODEL, Key("default", name)], "Placed")


def limits(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = pod["spec"]["containers"][0]["resources"]["limits"]
    return found


async def swapped(sim: Devices) -> None:
    """A weak model runs, then a strong one comes."""
    sim.add("weak", 0)
    await sim.settle()
    sim.add("strong", 10)
    await sim.settle()


async def test_a_kill_at_any_await_of_a_swap_gives_the_device_to_the_strongest_alone() -> None:
    calm = Devices()
    await swapped(calm)
    assert calm.holders() == {"strong"}
    assert calm.placed("weak")["reason"] == "Preempted"
    sets_made = sum("StatefulSet" in write for write in calm.cluster.writes)
    for kill_at in range(calm.num_checkpoints):
        sim = Devices()
        sim.kill_at = kill_at
        await swapped(sim)
        assert sim.holders() == {"strong"}, kill_at
        assert sim.placed("weak")["reason"] == "Preempted", kill_at
        assert sim.most_clients == 1, kill_at
        # One more: the write that was cut off is made again. The loser never comes back between.
        made = sum("StatefulSet" in write for write in sim.cluster.writes)
        assert made <= sets_made + 1, kill_at
    assert await quiet_writes(sim) == []


@pytest.mark.parametrize("seed", range(8))
async def test_under_faults_devices_never_have_two_clients_and_the_strongest_win(seed: int) -> None:
    sim = Devices(seed, devices=2)
    sim.fault_rate = 0.1
    priorities = {f"m{number}": sim.rng.randint(0, 3) for number in range(6)}
    for name, priority in priorities.items():
        sim.add(name, priority)
        end = sim.time_s + sim.rng.uniform(0, 2 * RESIDENCE_S)
        while sim.time_s < end and await sim._round():
            pass
    sim.calm()
    await sim.settle()
    assert sim.most_clients <= 2
    has = sorted((priorities[name] for name in sim.holders()), reverse=True)
    assert has == sorted(priorities.values(), reverse=True)[:2]
    assert await quiet_writes(sim) == []


async def test_who_waits_for_a_drain_takes_no_worse_flavor_and_nobody_elses_device() -> None:
    sim = Devices(devices=2)
    gpu = {"name": "gpu", "accelerator": "nvidia", "minResidenceSeconds": RESIDENCE_S}
    sim.cluster.edit(
        POOL, POOL_KEY, lambda live: live["spec"].update(flavors=[gpu, {"name": "cpu"}])
    )
    for name, priority in (("weakest", 0), ("weak", 1)):
        sim.add(name, priority)
        await sim.settle()
    sim.add("strong", 10)
    await sim.settle()
    assert sim.most_clients == 2
    with_devices = {
        labels_of(pod)["terrace.dev/model"] for pod in replicas(sim) if GPU in limits(pod)
    }
    assert with_devices == {"weak", "strong"}
    assert sim.holders() == {"weakest", "weak", "strong"}


async def test_of_all_who_wait_the_strongest_gets_a_device_that_becomes_free() -> None:
    sim = Devices()
    sim.add("holder", 20)
    await sim.settle()
    for number in range(6):
        sim.add(f"m{number}", number)
    await sim.settle()
    before = len(sim.cluster.writes)
    sim.cluster.vanish(MODEL, Key("default", "holder"))
    await sim.settle()
    assert sim.holders() == {"m5"}
    made = [write for write in sim.cluster.writes[before:] if "apply StatefulSet" in write]
    assert made == ["apply StatefulSet default/m5-gpu"]


async def test_who_waits_gets_the_device_of_a_model_that_goes() -> None:
    sim = Devices()
    sim.add("first", 0)
    await sim.settle()
    sim.add("second", 0)
    await sim.settle()
    assert sim.placed("second")["reason"] == "NoNodeFits"
    sim.cluster.vanish(MODEL, Key("default", "first"))
    await sim.settle()
    assert sim.holders() == {"second"}
    assert sim.most_clients == 1
