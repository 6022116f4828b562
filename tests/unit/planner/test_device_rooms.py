"""What flavors with devices offer: free devices, classes of nodes, sharing, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.planning import GIB, MIB, llama_8b_facts, node
from terrace.api.conditions import Reason
from terrace.api.offload import KvTypes, Offload
from terrace.api.pool import Flavor
from terrace.planner.accelerators import built_in
from terrace.planner.device_labels import matches
from terrace.planner.inputs import Cluster, Usage, unbound
from terrace.planner.rooms import NoPlacement, Room, rooms_of

if TYPE_CHECKING:
    from terrace.planner.nodes import NodeFacts

A100, T4 = "NVIDIA-A100-SXM4-80GB", "Tesla-T4"
MEMORY = {A100: 81920, T4: 15360}
GPU = "nvidia.com/gpu"
NOTHING = Usage()


def gpu_node(
    name: str, count: int = 4, product: str = A100, *, replicas: int = 1, **changes: Any
) -> NodeFacts:
    """A node with ``count`` NVIDIA devices, labelled as GPU feature discovery does."""
    labels = {
        "nvidia.com/gpu.product": product + ("-SHARED" if replicas > 1 else ""),
        "nvidia.com/gpu.memory": str(MEMORY[product]),
        "nvidia.com/gpu.replicas": str(replicas),
        "nvidia.com/gpu.sharing-strategy": "time-slicing" if replicas > 1 else "none",
    }
    return node(name, labels=labels, resources={GPU: count * replicas}, **changes)


def flavor(**fields: Any) -> Flavor:
    return Flavor.model_validate({"name": "gpu", "accelerator": "nvidia"} | fields)


def rooms(
    wanted: Flavor, *nodes: NodeFacts, used: Usage = NOTHING, **facts: Any
) -> tuple[Room, ...] | NoPlacement:
    return rooms_of(wanted, Offload(), llama_8b_facts(**facts), Cluster(nodes, used))


def devices(found: tuple[Room, ...] | NoPlacement) -> list[Any]:
    assert not isinstance(found, NoPlacement), found.message
    return [room.device for room in found]


def refused(found: tuple[Room, ...] | NoPlacement) -> NoPlacement:
    assert isinstance(found, NoPlacement)
    return found


def taken(waiting: int = 0, **by_node: int) -> Usage:
    return Usage({}, {GPU: by_node | {unbound("gpu"): waiting}})


def test_a_node_with_a_free_device_has_room() -> None:
    (device,) = devices(rooms(flavor(), gpu_node("a")))
    assert (device.resource, device.count, device.shares) == (GPU, 1, 1)
    assert (device.memory_bytes, device.backend) == (81920 * MIB, "cuda")
    assert device.node_labels == (("nvidia.com/gpu.product", (A100,)),)
    assert "label nvidia.com/gpu.memory" in device.reasons[0]


def test_classes_of_nodes_have_rooms_of_their_own_the_fastest_first() -> None:
    found = devices(rooms(flavor(), gpu_node("a", product=T4), gpu_node("b"), gpu_node("c")))
    assert [each.product for each in found] == [A100, T4]
    assert [each.memory_bytes for each in found] == [81920 * MIB, 15360 * MIB]


def test_a_driver_that_keeps_a_little_more_makes_no_other_class() -> None:
    other = gpu_node("b")
    labels = {**other.labels, "nvidia.com/gpu.memory": "81559"}
    (device,) = devices(rooms(flavor(), gpu_node("a"), replace(other, labels=labels)))
    assert device.memory_bytes == 81559 * MIB


def test_sizes_of_one_product_are_told_apart_by_their_labels() -> None:
    other = gpu_node("b")
    labels = {**other.labels, "nvidia.com/gpu.memory": "40960"}
    found = devices(rooms(flavor(), gpu_node("a"), replace(other, labels=labels)))
    assert [dict(each.node_labels)["nvidia.com/gpu.memory"] for each in found] == [
        ("81920",),
        ("40960",),
    ]


def test_the_node_that_keeps_fewest_devices_idle_is_preferred() -> None:
    nodes = [gpu_node("a", 8), gpu_node("b", 2), gpu_node("c", 4)]
    (device,) = devices(rooms(flavor(count=2), *nodes, used=taken(c=1)))
    assert device.preferred_nodes == ("b", "c", "a")
    spread = flavor(count=2, packing="Spread")
    (device,) = devices(rooms(spread, *nodes, used=taken(c=1)))
    assert device.preferred_nodes == ("a", "c", "b")


def test_several_devices_must_be_free_on_one_node() -> None:
    nodes = [gpu_node("a"), gpu_node("b")]
    assert devices(rooms(flavor(count=4), *nodes, used=taken(a=1)))[0].preferred_nodes == ("b",)
    found = refused(rooms(flavor(count=4), *nodes, used=taken(a=1, b=2)))
    assert (found.reason, found.missing_devices) == (Reason.NO_NODE_FITS, 1)
    assert "5 of 8 are free" in found.message
    assert "the nearest is node a with 3 of 4: 1 missing" in found.message


def test_devices_promised_to_replicas_without_a_node_count_as_used() -> None:
    nodes = [gpu_node("a", 1), gpu_node("b", 1)]
    assert devices(rooms(flavor(), *nodes, used=taken(waiting=1)))
    found = refused(rooms(flavor(), *nodes, used=taken(waiting=2)))
    assert found.missing_devices == 1
    assert "promised to replicas that have no node yet" in found.message


def test_a_flavor_called_as_its_node_is_not_taken_for_it() -> None:
    node_of_that_name = gpu_node("gpu", 2, memory_bytes=64 * GIB)
    used = Usage({"gpu": 60 * GIB}, {GPU: {"gpu": 1}})
    found = rooms(flavor(), node_of_that_name, used=used)
    assert not isinstance(found, NoPlacement)
    assert [room.memory_bytes for room in found] == [4 * GIB]
    assert refused(rooms(flavor(), node_of_that_name, used=taken(1, gpu=1)))


def test_what_waits_takes_the_fastest_class_first() -> None:
    nodes = [gpu_node("a", 1), gpu_node("b", 1, product=T4)]
    found = devices(rooms(flavor(), *nodes, used=taken(waiting=1)))
    assert [each.product for each in found] == [T4]


def test_host_memory_is_that_of_nodes_with_free_devices() -> None:
    nodes = [gpu_node("a", 1, memory_bytes=64 * GIB), gpu_node("b", 1, memory_bytes=16 * GIB)]
    found = rooms(flavor(), *nodes, used=taken(a=1))
    assert not isinstance(found, NoPlacement)
    assert found[0].memory_bytes == 16 * GIB


def test_exclusive_devices_never_get_a_second_client() -> None:
    found = refused(rooms(flavor(), gpu_node("a", replicas=4)))
    assert found.reason == Reason.NO_NODE_FITS
    assert "shares each device among 4 clients; set sharing: Shared" in found.message
    mixed = devices(rooms(flavor(), gpu_node("a", replicas=4), gpu_node("b")))
    assert [each.preferred_nodes for each in mixed] == [("b",)]


def test_a_share_is_the_memory_divided_by_the_clients() -> None:
    wanted = flavor(sharing="Shared")
    (device,) = devices(rooms(wanted, gpu_node("a", 1, replicas=4), used=taken(a=3)))
    assert (device.shares, device.memory_bytes) == (4, 81920 * MIB // 4)
    assert "time slices do not isolate" in device.reasons[1]
    assert "(time-slicing)" in device.reasons[1]
    full = refused(rooms(wanted, gpu_node("a", 1, replicas=4), used=taken(a=4)))
    assert full.missing_devices == 1


def test_a_renamed_shared_resource_is_asked_for_first() -> None:
    shared = gpu_node("a", 1)
    labels = {**shared.labels, "nvidia.com/gpu.replicas": "10"}
    shared = replace(shared, labels=labels, resources={"nvidia.com/gpu.shared": 10})
    (device,) = devices(rooms(flavor(sharing="Shared"), shared, gpu_node("b")))
    assert (device.resource, device.memory_bytes) == ("nvidia.com/gpu.shared", 8192 * MIB)
    assert refused(rooms(flavor(), shared)).reason == Reason.NO_NODE_FITS


def test_a_mig_slice_is_asked_for_by_name() -> None:
    resource = "nvidia.com/mig-1g.10gb"
    slices = replace(gpu_node("a"), resources={GPU: 0, resource: 7})
    (device,) = devices(rooms(flavor(resourceName=resource), slices))
    assert (device.resource, device.memory_bytes) == (resource, 10**10)


def test_slices_of_which_a_process_uses_one_are_never_several() -> None:
    resource = "nvidia.com/mig-1g.10gb"
    mixed = replace(gpu_node("a"), resources={resource: 7})
    single = gpu_node("a", 7)
    product = {"nvidia.com/gpu.product": f"{A100}-MIG-1g.10gb"}
    for wanted, nodes in (
        (flavor(resourceName=resource, count=2), mixed),
        (flavor(count=2), replace(single, labels={**single.labels, **product})),
    ):
        found = refused(rooms(wanted, nodes))
        assert found.reason == Reason.UNSUPPORTED_ACCELERATOR
        assert "a process can use one alone: drop count" in found.message
    (device,) = devices(rooms(flavor(count=2), single, gpu_node("b", 2)))
    assert not device.is_alone


@pytest.mark.parametrize(
    ("accelerator", "resource"),
    [
        ("moore-threads", "mthreads.com/gpu"),
        ("intel-npu", "npu.intel.com/npu"),
        ("amd", "amd.com/gpu"),
        ("ascend", "huawei.com/Ascend910"),
    ],
)
def test_unknown_memory_names_the_field_to_set(accelerator: str, resource: str) -> None:
    bare = node(resources={resource: 2})
    wanted = flavor(accelerator=accelerator)
    types = ("F16", "F32")
    found = refused(rooms(wanted, bare, weight_types=types))
    assert found.reason == Reason.UNKNOWN_DEVICE_MEMORY
    assert "set memoryPerDevice" in found.message
    own = flavor(accelerator=accelerator, memoryPerDevice="16Gi")
    (device,) = devices(rooms(own, bare, weight_types=types))
    assert (device.memory_bytes, device.resource) == (16 * GIB, resource)


@pytest.mark.parametrize(
    "accelerator", [name for name, row in built_in().accelerators.items() if row.reason]
)
def test_what_llama_cpp_cannot_use_is_refused_with_the_reason(accelerator: str) -> None:
    row = built_in().accelerators[accelerator]
    bare = node(resources=dict.fromkeys(row.resources, 8))
    found = refused(rooms(flavor(accelerator=accelerator), bare))
    assert found.reason == Reason.UNSUPPORTED_ACCELERATOR
    assert row.reason in found.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"accelerator": "nope"}, "the accelerator table has no 'nope'; it has cpu, nvidia, amd"),
        ({"accelerator": "metal"}, "is for runtimes outside of Kubernetes alone"),
        (
            {"accelerator": "amd", "resourceName": GPU},
            f"{GPU} is a resource of accelerator nvidia, not of amd",
        ),
    ],
)
def test_an_accelerator_that_cannot_be_is_refused(fields: dict[str, str], words: str) -> None:
    found = refused(rooms(flavor(**fields), gpu_node("a")))
    assert found.reason == Reason.UNSUPPORTED_ACCELERATOR
    assert words in found.message


def test_weight_types_without_kernels_are_refused_by_name() -> None:
    wanted = flavor(accelerator="ascend", memoryPerDevice="64Gi")
    bare = node(resources={"huawei.com/Ascend910": 8})
    found = refused(rooms(wanted, bare, weight_types=("F32", "Q4_K", "Q6_K")))
    assert found.reason == Reason.UNSUPPORTED_WEIGHT_TYPE
    assert "weights of type Q4_K, Q6_K" in found.message
    assert devices(rooms(wanted, bare, weight_types=("F32", "Q4_0", "Q8_0")))


def test_kv_types_without_kernels_are_refused_by_name() -> None:
    wanted = flavor(accelerator="ascend", memoryPerDevice="64Gi")
    bare = node(resources={"huawei.com/Ascend910": 8})
    offload = Offload(kv_types=KvTypes(key="q8_0", value="f16"))
    found = refused(rooms_of(wanted, offload, llama_8b_facts(), Cluster((bare,))))
    assert found.reason == Reason.UNSUPPORTED_KV_TYPE
    assert "key q8_0 with value f16; they run f16" in found.message


def test_a_backend_without_an_image_is_refused_unless_the_flavor_has_one() -> None:
    table = replace(built_in(), without_image=frozenset({"nvidia"}))
    cluster = Cluster((gpu_node("a"),), accelerators=table)
    found = refused(rooms_of(flavor(), Offload(), llama_8b_facts(), cluster))
    assert "there is no image for CUDA: set runtimeImage" in found.message
    own = flavor(runtimeImage="mine:1")
    assert devices(rooms_of(own, Offload(), llama_8b_facts(), cluster))


def test_a_claim_brings_devices_that_nobody_counts() -> None:
    wanted = flavor(resourceClaimTemplateName="gpus", memoryPerDevice="80Gi")
    (device,) = devices(rooms(wanted, node("a")))
    assert (device.claim_template, device.resource) == ("gpus", "")
    assert device.memory_bytes == 80 * GIB
    found = refused(rooms(flavor(resourceClaimTemplateName="gpus"), node("a")))
    assert found.reason == Reason.UNKNOWN_DEVICE_MEMORY


def test_nodes_without_the_resource_are_named_with_what_they_lack() -> None:
    found = refused(rooms(flavor(), node("a"), node("b")))
    assert found.reason == Reason.NO_NODE_FITS
    assert f"none of its 2 nodes offers {GPU}" in found.message


def test_metal_takes_three_quarters_of_the_hosts_memory_outside_of_kubernetes() -> None:
    cluster = Cluster((node("mac"),), is_standalone=True)
    found = rooms_of(flavor(accelerator="metal"), Offload(), llama_8b_facts(), cluster)
    (device,) = devices(found)
    assert device.is_unified
    assert device.memory_bytes == 24 * GIB


def test_a_partition_of_amd_needs_its_size() -> None:
    resource = "amd.com/cpx_nps4"
    assert matches(built_in().accelerators["amd"].resource_pattern, resource)
    bare = node(labels={"amd.com/gpu.vram": "191G"}, resources={resource: 64})
    found = refused(rooms(flavor(accelerator="amd", resourceName=resource), bare))
    assert found.reason == Reason.UNKNOWN_DEVICE_MEMORY
