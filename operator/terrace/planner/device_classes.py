"""Nodes of a flavor, grouped by what their devices are, and how many of them are free.

Owns: DeviceClass, what counts as free. Does not own: labels (``device_labels.py``), what becomes of
a class (``device_rooms.py``). Pure. Next: ``device_rooms.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple

from terrace.planner.device_labels import NodeDevices, bytes_per_second, read_devices

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from terrace.planner.accelerators import Accelerator
    from terrace.planner.devices import NodeLabels
    from terrace.planner.nodes import NodeFacts

ALIKE = 0.06
"""Sizes of one product that differ by less are one class: drivers keep a little more or less."""


@dataclass(slots=True)
class DeviceClass:
    """Nodes whose devices a plan may take for the same."""

    sample: NodeDevices
    """Of the node with least memory per client."""
    client_bytes: int
    """Least memory that one client of a device has; 0: unknown."""
    bytes_per_second: float
    nodes: list[tuple[NodeFacts, NodeDevices]] = field(default_factory=list)
    node_labels: NodeLabels = ()


class FreeNode(NamedTuple):
    """A node of a class and the devices nobody has asked for yet."""

    free: int
    allocatable: int
    node: NodeFacts


def classes_of(
    row: Accelerator, resource: str, nodes: Iterable[NodeFacts], memory_bytes: int | None
) -> list[DeviceClass]:
    """Classes, the fastest first; ``memory_bytes`` of one device is the flavor's own word for it.

    ``nodes`` without the resource are left out.
    """
    found: list[DeviceClass] = []
    by_product: dict[str, list[DeviceClass]] = {}
    for node in nodes:
        devices = read_devices(row, resource, node)
        if devices.allocatable < 1:
            continue
        size = (memory_bytes or devices.memory_bytes or 0) // devices.replicas
        alike = by_product.setdefault(devices.product, [])
        mine = next((each for each in alike if _is_alike(each.client_bytes, size)), None)
        if mine is None:
            mine = DeviceClass(devices, size, bytes_per_second(row, devices.product))
            alike.append(mine)
            found.append(mine)
        elif size < mine.client_bytes:
            mine.sample, mine.client_bytes = devices, size
        mine.nodes.append((node, devices))
    for each in found:
        each.node_labels = _node_labels(each, is_alone=len(by_product[each.sample.product]) == 1)
    return sorted(found, key=lambda each: (-each.bytes_per_second, -each.client_bytes))


def free_nodes(found: DeviceClass, used: Mapping[str, int]) -> list[FreeNode]:
    """The nodes of a class with their free devices; ``used``: node -> devices."""
    return [
        FreeNode(max(0, devices.allocatable - used.get(node.name, 0)), devices.allocatable, node)
        for node, devices in found.nodes
    ]


def preferred(nodes: Sequence[FreeNode], most: int, *, is_packed: bool) -> list[FreeNode]:
    """At most so many of ``nodes``: packed, the one with fewest devices free first, else most."""
    sign = 1 if is_packed else -1
    return nsmallest(most, nodes, key=lambda each: (sign * each.free, each.node.name))


def _is_alike(one: int, other: int) -> bool:
    return abs(one - other) <= ALIKE * max(one, other)


def _node_labels(found: DeviceClass, *, is_alone: bool) -> NodeLabels:
    """Labels that tell the nodes of a class from others; sizes only where products do not."""
    keys = {found.sample.product_label} if found.sample.product_label else set()
    if not is_alone:
        keys |= set(found.sample.sizing_labels)
    return tuple(
        (key, tuple(sorted({node.labels[key] for node, _ in found.nodes if key in node.labels})))
        for key in sorted(keys)
    )
