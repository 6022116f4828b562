"""The accelerator table: each vendor's real labels, merging a user's rows, refusals by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.planning import GIB, MIB, node
from terrace.api.offload import KvTypes
from terrace.planner.accelerator_page import main
from terrace.planner.accelerators import (
    Accelerator,
    AcceleratorTable,
    BadTableError,
    built_in,
    missing_weight_types,
    read_table,
    runs_kv,
)
from terrace.planner.device_labels import bytes_per_second, matches, parse_size, read_devices

PAGE = Path(__file__).parents[3] / "docs/accelerators.md"
GB = 10**9
EVERY_TYPE = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4")


def row(name: str) -> Accelerator:
    return built_in().accelerators[name]


@pytest.mark.parametrize(
    ("accelerator", "resource", "labels", "product", "memory_bytes"),
    [
        (
            "nvidia",
            "nvidia.com/gpu",
            {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"},
            "NVIDIA-H100-80GB-HBM3",
            81559 * MIB,
        ),
        (  # MIG, strategy mixed: labels of the slice's own resource.
            "nvidia",
            "nvidia.com/mig-1g.10gb",
            {
                "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
                "nvidia.com/gpu.memory": "81920",
                "nvidia.com/mig-1g.10gb.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
                "nvidia.com/mig-1g.10gb.memory": "9728",
            },
            "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
            9728 * MIB,
        ),
        # MIG without GPU feature discovery: the name alone, which must not promise too much.
        ("nvidia", "nvidia.com/mig-1g.10gb", {}, "", 10 * GB),
        ("nvidia", "nvidia.com/mig-1g.5gb", {"nvidia.com/gpu.memory": "40536"}, "", 5 * GB),
        ("nvidia", "nvidia.com/gpu.shared", {"nvidia.com/gpu.memory": "15360"}, "", 15360 * MIB),
        (  # GKE's own plugin, without GPU feature discovery.
            "nvidia",
            "nvidia.com/gpu",
            {"cloud.google.com/gke-accelerator": "nvidia-l4"},
            "nvidia-l4",
            23 * GB,
        ),
        (
            "nvidia",
            "nvidia.com/gpu",
            {"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"},
            "nvidia-h100-mega-80gb",
            80 * GB,
        ),
        (
            "nvidia",
            "nvidia.com/gpu",
            {
                "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
                "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
            },
            "1g.5gb",
            5 * GB,
        ),
        (
            "nvidia",
            "nvidia.com/gpu",
            {
                "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
                "cloud.google.com/gke-gpu-partition-size": "something new",
            },
            "something new",
            None,
        ),
        (
            "nvidia",
            "nvidia.com/gpu",
            {"cloud.google.com/gke-accelerator": "nvidia-new"},
            "nvidia-new",
            None,
        ),
        (  # Karpenter on EKS, and EKS Auto Mode.
            "nvidia",
            "nvidia.com/gpu",
            {
                "karpenter.k8s.aws/instance-gpu-name": "a10g",
                "karpenter.k8s.aws/instance-gpu-memory": "22888",
            },
            "a10g",
            22888 * MIB,
        ),
        (
            "nvidia",
            "nvidia.com/gpu",
            {
                "eks.amazonaws.com/instance-gpu-name": "l4",
                "eks.amazonaws.com/instance-gpu-memory": "22888",
            },
            "l4",
            22888 * MIB,
        ),
        (
            "nvidia",
            "nvidia.com/mig-1g.10gb",
            {"karpenter.k8s.aws/instance-gpu-memory": "81920"},
            "",
            10 * GB,
        ),
        (
            "amd",
            "amd.com/gpu",
            {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "191G"},
            "AMD_Instinct_MI300X_OAM",
            191 * GIB,
        ),
        ("amd", "amd.com/gpu", {"beta.amd.com/gpu.vram.16G": "1"}, "", 16 * GIB),
        ("amd", "amd.com/cpx_nps4", {"amd.com/gpu.vram": "191G"}, "", None),
        (
            "intel-gpu",
            "gpu.intel.com/i915",
            {"gpu.intel.com/product": "Flex_170", "gpu.intel.com/device.count": "1"},
            "Flex_170",
            16 * GIB,
        ),
        (
            "intel-gpu",
            "gpu.intel.com/xe",
            {"gpu.intel.com/memory.max": "34359738368", "gpu.intel.com/device.count": "2"},
            "",
            16 * GIB,
        ),
        ("intel-npu", "npu.intel.com/npu", {}, "", None),
        (
            "ascend",
            "huawei.com/Ascend910",
            {"node.kubernetes.io/npu.chip.name": "910B3", "accelerator": "huawei-Ascend910"},
            "910B3",
            64 * GIB,
        ),
        (
            "ascend",
            "huawei.com/Ascend910",
            {"node.kubernetes.io/npu.chip.name": "910B4"},
            "910B4",
            32 * GIB,
        ),
        ("ascend", "huawei.com/Ascend910B4-1", {}, "", 64 * GIB),
        ("ascend", "huawei.com/Ascend910", {}, "", None),
        ("ascend-310p", "huawei.com/Ascend310P", {}, "", 24 * GIB),
        ("hygon", "hygon.com/dcu", {"hygon.com/dcu.vram": "64G"}, "", 64 * GIB),
        ("hygon", "hygon.com/dcu-share-30c-16g", {}, "", 16 * GB),
        ("hygon", "hygon.com/dcu-mig-2g-15gb", {}, "", 15 * GB),
        (
            "metax",
            "metax-tech.com/gpu",
            {"metax-tech.com/gpu.product": "MXC500", "metax-tech.com/gpu.memory": "64GB"},
            "MXC500",
            64 * GB,
        ),
        ("cambricon", "cambricon.com/mlu370.mim-2m.8gb", {"Model": "MLU370"}, "MLU370", 8 * GB),
        ("moore-threads", "mthreads.com/gpu", {"mthreads.com/gpu": "enable"}, "", None),
        ("enflame", "enflame.com/gcu", {}, "", None),
        ("kunlunxin", "kunlunxin.com/xpu", {}, "", None),
        ("iluvatar", "iluvatar.com/gpu", {"iluvatar.ai/gpu": "present"}, "", None),
        ("biren", "birentech.com/gpu", {}, "", None),
        ("qualcomm", "qualcomm.com/qaic", {"qualcomm.com/qaic": "true"}, "", None),
    ],
)
def test_labels_tell_product_and_memory(
    accelerator: str,
    resource: str,
    labels: dict[str, str],
    product: str,
    memory_bytes: int | None,
) -> None:
    assert matches(row(accelerator).resource_pattern, resource)
    read = read_devices(row(accelerator), resource, node(labels=labels, resources={resource: 4}))
    assert (read.product, read.memory_bytes) == (product, memory_bytes)


@pytest.mark.parametrize(
    ("accelerator", "resource", "offered", "labels", "replicas"),
    [
        ("nvidia", "nvidia.com/gpu", 4, {"nvidia.com/gpu.replicas": "4"}, 4),
        ("nvidia", "nvidia.com/gpu", 4, {"nvidia.com/gpu.replicas": "0"}, 1),
        ("nvidia", "nvidia.com/gpu", 4, {}, 1),
        ("nvidia", "nvidia.com/gpu.shared", 20, {"nvidia.com/gpu.replicas": "10"}, 10),
        ("nvidia", "nvidia.com/mig-1g.10gb", 2, {"nvidia.com/mig-1g.10gb.replicas": "2"}, 2),
        ("nvidia", "nvidia.com/gpu", 4, {"nvidia.com/gpu.replicas": "-3"}, 1),
        ("nvidia", "nvidia.com/gpu", 4, {"nvidia.com/gpu.replicas": "9" * 30}, 1024),
        (
            "nvidia",
            "nvidia.com/gpu",
            8,
            {
                "cloud.google.com/gke-max-shared-clients-per-gpu": "8",
                "nvidia.com/gpu.replicas": "1",
            },
            8,
        ),
        ("intel-gpu", "gpu.intel.com/i915", 10, {"gpu.intel.com/device.count": "2"}, 5),
        ("intel-gpu", "gpu.intel.com/i915", 10, {"gpu.intel.com/device.count": "0"}, 1),
    ],
)
def test_labels_tell_how_many_clients_a_device_has(
    accelerator: str, resource: str, offered: int, labels: dict[str, str], replicas: int
) -> None:
    read = read_devices(
        row(accelerator), resource, node(labels=labels, resources={resource: offered})
    )
    assert read.replicas == replicas


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("81920", "MiB", 81920 * MIB),
        ("191G", "GiB", 191 * GIB),
        ("191Gi", "GB", 191 * GIB),
        ("64GB", "GB", 64 * GB),
        ("1.5T", "GiB", 1536 * GIB),
        (" 16GiB ", "GB", 16 * GIB),
        ("", "MiB", None),
        ("lots", "MiB", None),
        ("-5", "MiB", None),
        ("1e9", "B", None),
        ("9" * 40, "B", None),
    ],
)
def test_sizes_are_read_or_unknown(text: str, unit: Any, size: int | None) -> None:
    assert parse_size(text, unit) == size


@pytest.mark.parametrize(
    ("accelerator", "product", "gigabytes"),
    [
        ("nvidia", "NVIDIA-H100-80GB-HBM3", 3350),
        ("nvidia", "NVIDIA-H100-PCIe", 2000),
        ("nvidia", "NVIDIA-H200", 4800),
        ("nvidia", "NVIDIA-A100-SXM4-80GB", 1935),
        ("nvidia", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", 250),
        ("nvidia", "NVIDIA-L4", 300),
        ("nvidia", "NVIDIA-L40S", 864),
        ("nvidia", "NVIDIA-A10", 600),
        ("nvidia", "NVIDIA-A2", 200),
        ("nvidia", "Tesla-T4-SHARED", 320),
        ("nvidia", "NVIDIA-GeForce-RTX-4090", 1008),
        ("nvidia", "something new", 300),
        ("amd", "AMD_Instinct_MI300X_OAM", 5300),
        ("ascend", "910B4", 800),
        ("ascend", "910B3", 1600),
    ],
)
def test_the_first_pattern_that_fits_tells_the_rate(
    accelerator: str, product: str, gigabytes: float
) -> None:
    assert bytes_per_second(row(accelerator), product) == gigabytes * 1e9


@pytest.mark.parametrize(
    ("accelerator", "lacking"),
    [
        ("nvidia", ()),
        ("amd", ()),
        ("intel-gpu", ()),
        ("moore-threads", ()),
        ("ascend", ("IQ4_XS", "MXFP4", "Q4_K", "Q6_K")),
        ("ascend-310p", ("BF16", "IQ4_XS", "MXFP4", "Q4_0", "Q4_K", "Q6_K", "Q8_0")),
        ("intel-npu", ("BF16", "IQ4_XS")),
    ],
)
def test_weight_types_that_kernels_lack_are_named(
    accelerator: str, lacking: tuple[str, ...]
) -> None:
    backend = built_in().backend_of(row(accelerator))
    assert missing_weight_types(backend, (*EVERY_TYPE, "I32")) == lacking


@pytest.mark.parametrize(
    ("accelerator", "key", "value", "runs"),
    [
        ("nvidia", "q8_0", "f16", True),
        ("ascend", "f16", "f16", True),
        ("ascend", "q8_0", "q8_0", False),
        ("intel-npu", "f16", "q8_0", False),
        ("metal", "q8_0", "q8_0", True),
        ("metal", "q8_0", "f16", False),
    ],
)
def test_kv_pairs_that_kernels_lack_are_known(
    accelerator: str, key: Any, value: Any, *, runs: bool
) -> None:
    backend = built_in().backend_of(row(accelerator))
    assert runs_kv(backend, KvTypes(key=key, value=value)) is runs


def test_every_row_runs_or_says_why_not_and_no_resource_has_two_owners() -> None:
    rows = built_in().accelerators.values()
    assert all(
        each.backend in built_in().backends if each.backend else each.reason for each in rows
    )
    whole = [each for each in rows if "vulkan" not in each.name]
    for each in whole:
        for resource in (*each.resources, *each.shared_resources):
            owners = [
                other.name
                for other in whole
                if other.resource_pattern and matches(other.resource_pattern, resource)
            ]
            assert owners == [each.name], resource


MINE = """
backends:
  maca: {title: MACA, imageSuffix: -maca, weightTypes: [F16], kvTypes: [f16], margin: 1Gi}
accelerators:
- {name: metax, extends: metax, backend: maca}
- name: mine
  title: Mine
  backend: cuda
  resources: [example.com/gpu]
  memory: [{label: example.com/memory, unit: MiB}]
"""


def test_a_users_rows_replace_ours_and_add_to_them() -> None:
    table = read_table(MINE, built_in())
    assert table.backend_of(table.accelerators["metax"]).title == "MACA"
    assert table.accelerators["metax"].resources == ("metax-tech.com/gpu",)
    assert table.accelerators["mine"].resources == ("example.com/gpu",)
    assert table.accelerators["nvidia"] == built_in().accelerators["nvidia"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("accelerators: [{name: x, title: X}]", "accelerators.x: set backend, or reason"),
        ("accelerators: [{name: x, title: X, backend: none}]", "accelerators.x.backend: no back"),
        ("accelerators: [{name: X, title: X, reason: y}]", "accelerators.X.name"),
        (
            "accelerators: [{name: x, title: X, reason: y, colour: 1}]",
            "accelerators.x.colour: Extra inputs",
        ),
        (
            "accelerators: [{name: x, title: X, reason: y, memory: [{label: a, resource: (b)}]}]",
            "accelerators.x.memory.0: set exactly one",
        ),
        (
            "accelerators: [{name: x, title: X, backend: cuda, memory: [{resource: b}]}]",
            "accelerators.x.memory.0: resource: the pattern needs a group",
        ),
        (
            "accelerators: [{name: x, title: X, backend: cuda, resourcePattern: '('}]",
            "accelerators.x.resourcePattern: is no regular expression",
        ),
        (
            "accelerators: [{name: x, title: X, backend: cuda, margin: much}]",
            "accelerators.x.margin",
        ),
        ("accelerators: [{name: x, extends: y}]", "accelerators.x: extends: no row is called 'y'"),
        ("accelerators: {x: 1}", "accelerators: must be a list"),
        ("backends: [1]", "backends: must be a map"),
        ("backends: {cuda: 1}", "backends.cuda"),
        ("gpus: []", "must be a map with backends and accelerators"),
        ("[", "is no YAML"),
        ("a" * ((1 << 20) + 1), "is larger than"),
    ],
)
def test_a_bad_row_is_refused_with_its_field(text: str, named: str) -> None:
    with pytest.raises(BadTableError) as error:
        read_table(text, built_in())
    assert named in str(error.value)


def test_an_empty_file_changes_nothing() -> None:
    table = read_table("", built_in())
    assert isinstance(table, AcceleratorTable)
    assert table.accelerators == built_in().accelerators


def test_the_page_is_the_tables() -> None:
    assert main([str(PAGE), "--check"]) == 0, "python -m terrace.planner.accelerator_page PAGE"


def test_a_stale_page_is_told_and_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "accelerators.md"
    assert main([str(page), "--check"]) == 1
    assert main([str(page)]) == 0
    assert main([str(page), "--check"]) == 0
