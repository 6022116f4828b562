"""Whatever nodes say of their devices: nothing raises, nothing is promised twice."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.planning import llama_8b_facts, node
from terrace.api.offload import Offload
from terrace.api.pool import Flavor
from terrace.planner.accelerators import built_in
from terrace.planner.device_labels import parse_size, read_devices
from terrace.planner.inputs import Cluster, Usage, unbound
from terrace.planner.rooms import NoPlacement, rooms_of

GPU = "nvidia.com/gpu"
LABELS = sorted(
    {
        label.replace("{resource}", GPU)
        for row in built_in().accelerators.values()
        for label in row.product
    }
    | {"nvidia.com/gpu.memory", "nvidia.com/gpu.replicas", "amd.com/gpu.vram"}
    | {"gpu.intel.com/memory.max", "gpu.intel.com/device.count", "beta.amd.com/gpu.vram.16G"}
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers(-5, 10**20).map(str),
    st.sampled_from(["81920", "191G", "64GB", "910B3", "Flex_170", "4", "0", "¹", "1e5", "٣"]),
)
FACTS = llama_8b_facts()
PRODUCTS = ("NVIDIA-A100-SXM4-80GB", "Tesla-T4")


@given(
    st.sampled_from(sorted(built_in().accelerators)),
    st.dictionaries(st.sampled_from(LABELS), VALUES, max_size=6),
    st.integers(0, 64),
)
def test_no_label_makes_reading_fail(name: str, labels: dict[str, str], count: int) -> None:
    row = built_in().accelerators[name]
    for resource in (*row.resources, "x.y/z", "nvidia.com/mig-1g.10gb"):
        read = read_devices(row, resource, node(labels=labels, resources={resource: count}))
        assert read.memory_bytes is None or read.memory_bytes > 0
        assert read.replicas >= 1
        assert read.allocatable == count


@given(st.text(max_size=40), st.sampled_from(["B", "MiB", "GB", "GiB"]))
def test_no_text_makes_a_size_fail(text: str, unit: Any) -> None:
    size = parse_size(text, unit)
    assert size is None or size >= 0


NODE = st.tuples(
    st.integers(0, 8), st.sampled_from(PRODUCTS), st.sampled_from([1, 1, 4]), st.integers(0, 9)
)


@given(
    st.lists(NODE, min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
)
def test_a_room_stands_for_devices_that_are_there(
    kinds: list[tuple[int, str, int, int]],
    count: int,
    waiting: int,
    is_shared: bool,  # noqa: FBT001 -- drawn
    is_packed: bool,  # noqa: FBT001 -- drawn
) -> None:
    nodes, used, replicas_of = [], {}, {}
    for number, (devices, product, replicas, taken) in enumerate(kinds):
        name = f"n{number}"
        labels = {
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.memory": "81920" if product == PRODUCTS[0] else "15360",
            "nvidia.com/gpu.replicas": str(replicas),
        }
        nodes.append(node(name, labels=labels, resources={GPU: devices * replicas}))
        used[name], replicas_of[name] = taken, replicas
    count = 1 if is_shared else count
    wanted = {
        "name": "gpu",
        "accelerator": "nvidia",
        "count": count,
        "sharing": "Shared" if is_shared else "Exclusive",
        "packing": "Pack" if is_packed else "Spread",
    }
    usage = Usage({}, {GPU: used | {unbound("gpu"): waiting}})
    flavor = Flavor.model_validate(wanted)
    found = rooms_of(flavor, Offload(), FACTS, Cluster(tuple(nodes), usage))
    free = {
        each.name: max(0, each.resources[GPU] - used[each.name])
        for each in nodes
        if is_shared or replicas_of[each.name] == 1
    }
    slots = sum(each // count for each in free.values())
    if isinstance(found, NoPlacement):
        assert slots * count <= waiting + count - 1
        return
    assert slots * count > waiting
    for room in found:
        assert room.device is not None
        mine = [free[name] for name in room.device.preferred_nodes]
        assert mine == sorted(mine, reverse=not is_packed)
        assert min(mine) >= count
        assert {replicas_of[name] for name in room.device.preferred_nodes} == {room.device.shares}
