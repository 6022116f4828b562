"""Devices in words as the labels and resources of a node, and nodes' devices as flavors.

Owns: what a node would say that had these devices. Does not own: reading that back
(``planner/device_labels.py``) or the table (``planner/accelerators.py``). Pure. Next:
``target.py``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from terrace.api.names import MAX_FLAVOR_LENGTH
from terrace.cli.errors import InputError
from terrace.planner.accelerators import CPU
from terrace.planner.device_labels import read_devices
from terrace.planner.nodes import NodeFacts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace.cli.node_shape import Devices, NodeShape
    from terrace.planner.accelerators import Accelerator, AcceleratorTable

MAX_FLAVORS = 8
NODE = "node"


def shape_node(shape: NodeShape, table: AcceleratorTable) -> NodeFacts:
    """The node as the planner would see it. Raises InputError for devices it cannot know."""
    devices, labels, resources = shape.devices, {}, {}
    if devices is not None:
        row = row_of(devices, table)
        if row.resources:
            resource = row.resources[0]
            resources[resource] = devices.count
            if row.product and devices.product:
                labels[row.product[0].replace("{resource}", resource)] = devices.product
    node = NodeFacts(
        name=NODE,
        labels=labels,
        taints=(),
        unschedulable=False,
        ready=True,
        cpu_millis=shape.cpu_millis,
        memory_bytes=shape.memory_bytes,
        resources=resources,
    )
    if devices is not None:
        _check_memory(devices, row_of(devices, table), node)
    return node


def shape_flavor(shape: NodeShape) -> dict[str, Any]:
    """The flavor of a pool that stands for nodes of that shape."""
    devices = shape.devices
    if devices is None:
        return {"name": CPU}
    memory = {"memoryPerDevice": _quantity(devices.memory_bytes)} if devices.memory_bytes else {}
    return {
        "name": flavor_name(devices.accelerator),
        "accelerator": devices.accelerator,
        "count": devices.count,
        **memory,
    }


def cluster_flavors(nodes: Iterable[NodeFacts], table: AcceleratorTable) -> list[dict[str, Any]]:
    """A flavor for each kind of device that a node offers, in the table's order, then the CPU."""
    offered = {name for node in nodes for name, count in node.resources.items() if count > 0}
    found = [
        {"name": flavor_name(row.name), "accelerator": row.name}
        for row in table.accelerators.values()
        if offered & {*row.resources} and row.backend and not row.is_standalone
    ]
    # Rows of one resource, such as amd and amd-vulkan, are two ways to run one device.
    return [*found[: MAX_FLAVORS - 1], {"name": CPU}]


def flavor_name(accelerator: str) -> str:
    """A flavor's name holds no dash."""
    return re.sub(r"[^a-z0-9]", "", accelerator)[:MAX_FLAVOR_LENGTH]


def row_of(devices: Devices, table: AcceleratorTable) -> Accelerator:
    """The table's row; what llama.cpp cannot use is planned too, and refused with its reason."""
    row = table.accelerators.get(devices.accelerator)
    if row is None or devices.accelerator == CPU:
        known = ", ".join(name for name in table.accelerators if name != CPU)
        raise InputError(f"--node: gpu: no accelerator is called {devices.accelerator!r}: {known}")
    return row


def _quantity(count: int) -> str:
    """``count`` bytes as people write them; exact."""
    units = {"Ti": 1 << 40, "Gi": 1 << 30, "G": 10**9, "Mi": 1 << 20}
    for unit, size in units.items():
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _check_memory(devices: Devices, row: Accelerator, node: NodeFacts) -> None:
    if devices.memory_bytes or not row.resources or not row.backend:
        return
    if read_devices(row, row.resources[0], node).memory_bytes is None:
        raise InputError(
            f"--node: gpu: the accelerator table does not tell the memory of {devices.product!r}; "
            f"write it as gpu={devices.accelerator}:{devices.count}x{devices.product}:24Gi"
        )
