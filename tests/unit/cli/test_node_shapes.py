"""``--node``: nodes in words, and what is said about words that are none."""

from __future__ import annotations

import pytest

from terrace.cli.device_nodes import cluster_flavors, flavor_name
from terrace.cli.errors import InputError
from terrace.cli.node_shape import Devices, NodeShape, parse_shape
from terrace.cli.target import shape_target
from terrace.planner.accelerators import built_in
from terrace.planner.nodes import NodeFacts

GIB = 1 << 30


def shape(gpu: str) -> NodeShape:
    return parse_shape(f"cpu=8,memory=32Gi,gpu={gpu}")


def test_a_node_of_words() -> None:
    assert parse_shape("cpu=16, memory=64Gi") == NodeShape(16_000, 64 * GIB)
    assert parse_shape("memory=512Mi,cpu=500m") == NodeShape(500, GIB // 2)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("nvidia:24Gi", Devices("nvidia", 1, 24 * GIB)),
        ("nvidia:2x24Gi", Devices("nvidia", 2, 24 * GIB)),
        ("nvidia:H100-80GB", Devices("nvidia", 1, 80 * 10**9, "H100-80GB")),
        ("nvidia:4xA100-SXM4-40GB", Devices("nvidia", 4, 40 * 10**9, "A100-SXM4-40GB")),
        ("nvidia:4xL4:24Gi", Devices("nvidia", 4, 24 * GIB, "L4")),
        ("intel-gpu:2xMax_1550", Devices("intel-gpu", 2, 0, "Max_1550")),
    ],
)
def test_devices_by_memory_or_by_product(text: str, devices: Devices) -> None:
    assert shape(text).devices == devices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not NAME=VALUE"),
        ("cpu=4", "memory is missing"),
        ("memory=4Gi", "cpu is missing"),
        ("cpu=4,memory=4Gi,disk=1Gi", "'disk' is none of cpu, memory and gpu"),
        ("cpu=4,memory=4Gi,cpu=5", "cpu is said twice"),
        ("cpu=x,memory=4Gi", "cpu: 'x' is not a quantity"),
        ("cpu=4,memory=4GB", "memory: '4GB' is not a quantity"),
        ("cpu=0,memory=4Gi", "cpu must be above 0"),
        ("cpu=4,memory=4Gi,gpu=24Gi", "is not ACCELERATOR"),
        ("cpu=4,memory=4Gi,gpu=nvidia:0x24Gi", "1 to 16 devices"),
        ("cpu=4,memory=4Gi,gpu=nvidia:99x24Gi", "1 to 16 devices"),
        ("cpu=4,memory=4Gi,gpu=nvidia:2x0Gi", "gpu must be above 0"),
    ],
)
def test_what_is_no_node_is_named_with_the_way_out(text: str, said: str) -> None:
    with pytest.raises(InputError, match="--node") as raised:
        parse_shape(text)
    assert said in str(raised.value)


def test_a_product_gives_its_node_the_label_that_the_table_reads() -> None:
    target = shape_target(shape("intel-gpu:2xMax_1550"), "a node", built_in())
    (node,) = target.cluster.nodes
    assert node.labels == {"gpu.intel.com/product": "Max_1550"}
    assert node.resources == {"gpu.intel.com/xe": 2}
    (flavor,) = target.pool.flavors
    assert (flavor.name, flavor.accelerator, flavor.count) == ("intelgpu", "intel-gpu", 2)
    assert flavor.memory_per_device is None


def test_a_product_of_unknown_memory_asks_for_it() -> None:
    with pytest.raises(InputError, match="write it as gpu=nvidia:1xL4:24Gi"):
        shape_target(shape("nvidia:L4"), "a node", built_in())


def test_an_unknown_accelerator_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no accelerator is called 'voodoo': nvidia, amd"):
        shape_target(shape("voodoo:2x12Mi"), "a node", built_in())


@pytest.mark.parametrize(
    ("gpu", "memory"),
    [("nvidia:24Gi", "24Gi"), ("nvidia:H100-80GB", "80G"), ("nvidia:1.5Gi", "1536Mi")],
)
def test_a_printed_pool_has_sizes_that_people_write(gpu: str, memory: str) -> None:
    target = shape_target(shape(gpu), "a node", built_in())
    assert target.pool.flavors[0].memory_per_device == memory


def test_a_mac_is_planned_outside_of_kubernetes() -> None:
    target = shape_target(NodeShape(8000, 32 * GIB, Devices("metal", 1)), "a mac", built_in())
    assert target.cluster.is_standalone
    assert target.pool.flavors[0].accelerator == "metal"


@pytest.mark.parametrize("name", built_in().names)
def test_every_row_of_the_table_makes_a_flavor(name: str) -> None:
    if name != "cpu":
        target = shape_target(shape(f"{name}:2x24Gi"), "a node", built_in())
        assert target.pool.flavors[0].accelerator == name


def test_a_cluster_without_a_pool_gets_a_flavor_for_each_kind_of_device() -> None:
    def node(name: str, **resources: int) -> NodeFacts:
        offered = {key.replace("__", "/").replace("_", "."): n for key, n in resources.items()}
        return NodeFacts(name, {}, (), False, True, 8000, GIB, offered)

    nodes = [node("a", nvidia_com__gpu=2), node("b", nvidia_com__gpu=0, amd_com__gpu=1)]
    names = [flavor.get("accelerator", "cpu") for flavor in cluster_flavors(nodes, built_in())]
    assert names == ["nvidia", "amd", "amd-vulkan", "cpu"]
    assert [each["name"] for each in cluster_flavors([node("c")], built_in())] == ["cpu"]


def test_names_of_flavors_hold_no_dash() -> None:
    assert flavor_name("intel-gpu-vulkan") == "intelgpuvul"
