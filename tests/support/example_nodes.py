"""A node for each shipped example that asks for devices, with what its plugins put there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from support.controller_objects import node


@dataclass(frozen=True)
class Devices:
    """What a node of that vendor offers, and what one replica of the example requests."""

    resource: str
    count: int
    labels: dict[str, str]
    image_suffix: str

    @property
    def wanted(self) -> dict[str, str]:
        """Limits of a replica."""
        return {self.resource: "1"}


_L4 = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}

DEVICES: Final[dict[str, Devices]] = {
    "nvidia": Devices("nvidia.com/gpu", 4, _L4 | {"nvidia.com/gpu.replicas": "1"}, "-cuda"),
    "mig": Devices(
        "nvidia.com/mig-1g.10gb",
        7,
        {
            "nvidia.com/mig-1g.10gb.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
            "nvidia.com/mig-1g.10gb.memory": "9728",
        },
        "-cuda",
    ),
    "amd": Devices(
        "amd.com/gpu",
        8,
        {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "191G"},
        "-rocm",
    ),
    "npu": Devices("npu.intel.com/npu", 1, {}, "-openvino"),
    "ascend": Devices(
        "huawei.com/Ascend910", 8, {"node.kubernetes.io/npu.chip.name": "910B3"}, "-cann"
    ),
    "shared": Devices("nvidia.com/gpu", 4, _L4 | {"nvidia.com/gpu.replicas": "4"}, "-cuda"),
}
"""Name of the example's pool -> devices; 05-devices has a pool with a CPU flavor as well."""


def example_node(pool: str) -> dict[str, Any] | None:
    """The node for that pool; None where it asks for no devices."""
    devices = DEVICES.get(pool)
    if devices is None:
        return None
    return node(f"node-{pool}", labels=devices.labels, devices={devices.resource: devices.count})
