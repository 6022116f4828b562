"""Stronger models take devices from weaker ones, once, late enough, and never thrash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.planning import llama_8b_facts, model, node, pool
from terrace.planner.inputs import Cluster, ModelInputs, Usage
from terrace.planner.placement import Placement, place
from terrace.planner.preemption import Holder, find_swap, without

GPU = "nvidia.com/gpu"
RESIDENCE_S = 100
LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
    "nvidia.com/gpu.memory": "81920",
    "nvidia.com/gpu.replicas": "1",
}
FACTS = llama_8b_facts()


def gpu_node(name: str, count: int) -> Any:
    return node(name, labels=LABELS, resources={GPU: count}, memory_bytes=1 << 40)


def gpu_pool(count: int = 1) -> Any:
    flavor = {"name": "gpu", "accelerator": "nvidia", "minResidenceSeconds": RESIDENCE_S}
    return pool(flavor | ({"count": count} if count > 1 else {}))


def holder(name: str, priority: int, where: str = "a", count: int = 1, since: float = 0) -> Holder:
    return Holder(name, priority, "gpu", since, GPU, {where: count})


def used_by(holders: list[Holder]) -> Usage:
    devices: dict[str, int] = {}
    for each in holders:
        for where, count in each.devices.items():
            devices[where] = devices.get(where, 0) + count
    return Usage({}, {GPU: devices})


def swap(priority: int, nodes: list[Any], holders: list[Holder], *, count: int = 1) -> Any:
    wanted = ModelInputs(FACTS, model(priority=priority))
    cluster = Cluster(tuple(nodes), used_by(holders))
    return find_swap(wanted, gpu_pool(count), cluster, holders)


def victims(found: Any) -> list[str]:
    return sorted(each.name for each in found.victims)


def test_the_weakest_goes_and_of_equals_the_one_that_came_last() -> None:
    holders = [holder("a", 2), holder("b", 1, since=5), holder("c", 1, since=9)]
    found = swap(3, [gpu_node("a", 3)], holders)
    assert victims(found) == ["c"]
    assert found.at == 9 + RESIDENCE_S
    assert (found.resource, found.devices) == (GPU, 1)


@pytest.mark.parametrize("priority", [0, 1])
def test_nobody_goes_for_an_equal_or_a_weaker_one(priority: int) -> None:
    assert swap(priority, [gpu_node("a", 1)], [holder("a", 1)]) is None


def test_nobody_goes_where_a_device_is_free() -> None:
    assert swap(9, [gpu_node("a", 2)], [holder("a", 1)]) is None


def test_as_few_go_as_it_takes_and_all_on_one_node() -> None:
    nodes = [gpu_node("a", 2), gpu_node("b", 2)]
    holders = [holder("a", 0, "a"), holder("b", 1, "b"), holder("c", 1, "a"), holder("d", 0, "b")]
    assert len(swap(5, nodes, holders, count=2).victims) == 2
    alone = [holder("a", 0, "a"), holder("big", 1, "b", 2), holder("c", 0, "a")]
    assert victims(swap(5, nodes, alone, count=2)) == ["big"]


def test_a_model_that_fits_the_next_flavor_still_takes_the_first_ones_device() -> None:
    flavors = pool(
        {"name": "gpu", "accelerator": "nvidia", "minResidenceSeconds": 0}, {"name": "cpu"}
    )
    holders = [holder("weak", 0)]
    cluster = Cluster((gpu_node("a", 1),), used_by(holders))
    found = find_swap(ModelInputs(FACTS, model(priority=1)), flavors, cluster, holders)
    assert found is not None
    assert victims(found) == ["weak"]


def test_what_is_used_without_some_holders_is_never_below_nothing() -> None:
    left = without(Usage({"a": 5}, {GPU: {"a": 1}}), [holder("x", 0, count=3)])
    assert left.devices[GPU]["a"] == 0
    assert left.memory["a"] == 5


@dataclass
class _World:
    """Devices, who has them since when, who waits; time is in seconds."""

    devices: int
    now: float = 0
    running: dict[str, Holder] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    swaps: list[tuple[str, str, float]] = field(default_factory=list)

    def step(self) -> None:
        """Everybody who waits looks once, the strongest first; a drain takes no time."""
        for name, priority in sorted(self.waiting.items(), key=lambda each: (-each[1], each[0])):
            wanted = ModelInputs(FACTS, model(priority=priority))
            holders = list(self.running.values())
            cluster = Cluster((gpu_node("a", self.devices),), used_by(holders))
            found = find_swap(wanted, gpu_pool(), cluster, holders)
            if found is not None and found.at <= self.now:
                for victim in found.victims:
                    residence = self.now - self.running[victim.name].since
                    self.swaps.append((name, victim.name, residence))
                    self.waiting[victim.name] = victim.priority
                    del self.running[victim.name]
                cluster = Cluster(cluster.nodes, used_by(list(self.running.values())))
            if isinstance(place(wanted, gpu_pool(), cluster), Placement):
                self.running[name] = holder(name, priority, since=self.now)
                del self.waiting[name]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=8),
)
def test_random_arrivals_settle_with_the_strongest_and_do_not_thrash(
    devices: int, arrivals: list[tuple[int, int]]
) -> None:
    world, priorities = _World(devices), {}
    for number, (priority, pause_s) in enumerate(arrivals):
        name = f"m{number}"
        priorities[name] = world.waiting[name] = priority
        world.step()
        world.now += pause_s
    for _ in range(2 * len(arrivals)):
        world.step()
        world.now += RESIDENCE_S
    assert len(world.running) == min(devices, len(arrivals))
    # The strongest have the devices, each was taken for a stronger one and after its residence.
    has = sorted((each.priority for each in world.running.values()), reverse=True)
    assert has == sorted(priorities.values(), reverse=True)[:devices]
    for taker, victim, residence in world.swaps:
        assert priorities[taker] > priorities[victim]
        assert residence >= RESIDENCE_S
    # With nobody new, nothing moves any more.
    before = dict(world.running), len(world.swaps)
    for _ in range(3):
        world.step()
        world.now += RESIDENCE_S
    assert (world.running, len(world.swaps)) == before
