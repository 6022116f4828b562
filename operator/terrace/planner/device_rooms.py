"""What the devices of a flavor's nodes offer one replica, by class of node, or why they do not.

Owns: free devices, sharing. Does not own: what llama.cpp cannot run (``device_refusals.py``),
classes (``device_classes.py``), host memory (``rooms.py``). Pure. Next: ``rooms.py`` adds what the
hosts have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.quantity import parse_bytes
from terrace.planner.candidates import lane_of
from terrace.planner.device_classes import DeviceClass, classes_of, free_nodes, preferred
from terrace.planner.device_labels import is_one_per_process
from terrace.planner.devices import DeviceRoom
from terrace.planner.inputs import unbound
from terrace.planner.memo import NodesMemo
from terrace.planner.nodes import format_bytes
from terrace.planner.room import NoPlacement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from terrace.api.pool import Flavor
    from terrace.planner.accelerators import Accelerator, AcceleratorTable
    from terrace.planner.device_classes import FreeNode
    from terrace.planner.inputs import Cluster
    from terrace.planner.nodes import NodeFacts

PREFERRED_NODES = 4
_CLASSES: NodesMemo[list[DeviceClass]] = NodesMemo()


@dataclass(frozen=True, slots=True)
class DeviceOffer:
    """Devices for one replica, and the nodes that have them free, the best first."""

    device: DeviceRoom
    nodes: tuple[NodeFacts, ...]


def device_offers(
    flavor: Flavor, row: Accelerator, nodes: tuple[NodeFacts, ...], cluster: Cluster
) -> tuple[DeviceOffer, ...] | NoPlacement:
    """Offers of ``nodes``, the flavor's own of the cluster's, the fastest class first."""
    table = cluster.accelerators
    if row.is_standalone:
        return _standalone(flavor, table, row, nodes)
    if flavor.resource_claim_template_name is not None:
        return _claimed(flavor, table, row, nodes)
    resource = _resource(flavor, row, nodes)
    if resource is None:
        wanted = " or ".join(wanted_resources(flavor, row)) or "a resource of that kind"
        return NoPlacement(
            Reason.NO_NODE_FITS,
            f"flavor {flavor.name}: none of its {len(nodes)} nodes offers {wanted}: its device "
            "plugin does not run there, or set resourceName to what it offers",
            missing_devices=flavor.count or 1,
        )
    memory = _own_memory(flavor)
    key = (table, row.name, resource, memory, lane_of(flavor))
    classes = _CLASSES.get(cluster.nodes, key, lambda: classes_of(row, resource, nodes, memory))
    found, why = _usable(flavor, row, resource, classes)
    if not found:
        return why or NoPlacement(Reason.NO_NODE_FITS, f"flavor {flavor.name}: no device")
    used = cluster.used.devices.get(resource, {})
    return _offers(flavor, table, row, resource, found, used)


def _offers(
    flavor: Flavor,
    table: AcceleratorTable,
    row: Accelerator,
    resource: str,
    found: Sequence[DeviceClass],
    used: Mapping[str, int],
) -> tuple[DeviceOffer, ...] | NoPlacement:
    count = flavor.count or 1
    # Replicas without a node yet took the best class when they were planned.
    waiting = -(-used.get(unbound(flavor.name), 0) // count)
    offers, seen = [], []
    for each in found:
        nodes = free_nodes(each, used)
        seen += nodes
        fitting = [node for node in nodes if node.free >= count]
        slots = sum(node.free // count for node in fitting)
        mine, waiting = max(0, slots - waiting), max(0, waiting - slots)
        if mine:
            is_packed = flavor.packing != "Spread"
            best = preferred(fitting, PREFERRED_NODES, is_packed=is_packed)
            device = _device(flavor, table, row, resource, each, best)
            offers.append(DeviceOffer(device, tuple(node.node for node in fitting)))
    return tuple(offers) or _all_taken(flavor, resource, count, seen)


def _device(
    flavor: Flavor,
    table: AcceleratorTable,
    row: Accelerator,
    resource: str,
    found: DeviceClass,
    best: Sequence[FreeNode],
) -> DeviceRoom:
    return DeviceRoom(
        accelerator=row.name,
        backend=row.backend,
        product=found.sample.product,
        resource=resource,
        count=flavor.count or 1,
        memory_bytes=found.client_bytes,
        margin_bytes=parse_bytes(table.backend_of(row).margin),
        bytes_per_second=found.bytes_per_second,
        shares=found.sample.replicas if flavor.sharing == "Shared" else 1,
        is_alone=flavor.sharing == "Shared"
        or is_one_per_process(row, resource, found.sample.product),
        is_unified=row.is_unified,
        max_parallel=row.max_parallel,
        node_labels=found.node_labels,
        preferred_nodes=tuple(each.node.name for each in best),
        reasons=tuple(_reasons(flavor, row, found, best[0].node)),
    )


def _reasons(flavor: Flavor, row: Accelerator, found: DeviceClass, node: NodeFacts) -> list[str]:
    sample, replicas = found.sample, found.sample.replicas
    source = "memoryPerDevice" if flavor.memory_per_device else sample.memory_words
    name = sample.product or row.title
    reasons = [f"device {name}: {format_bytes(found.client_bytes * replicas)} each ({source})"]
    if flavor.sharing == "Shared" and replicas > 1:
        how = node.labels.get(row.shared_by, "") if row.shared_by else ""
        reasons.append(
            f"shared by {replicas} clients{f' ({how})' if how else ''}: a share of "
            f"{format_bytes(found.client_bytes)}; time slices do not isolate: a neighbour that "
            "takes more than its share takes it from the others"
        )
    return reasons


def _usable(
    flavor: Flavor, row: Accelerator, resource: str, found: list[DeviceClass]
) -> tuple[list[DeviceClass], NoPlacement | None]:
    """Classes whose memory is known, exclusive and several in a replica where that is asked for."""
    why: NoPlacement | None = None
    usable = []
    for each in found:
        name = each.nodes[0][0].name
        if flavor.sharing != "Shared" and each.sample.replicas > 1:
            why = NoPlacement(
                Reason.NO_NODE_FITS,
                f"flavor {flavor.name}: node {name} shares each device among "
                f"{each.sample.replicas} clients; set sharing: Shared, or choose nodes whose "
                "plugin does not share",
            )
        elif not each.client_bytes:
            why = NoPlacement(
                Reason.UNKNOWN_DEVICE_MEMORY,
                f"flavor {flavor.name}: no label of node {name} tells the memory of its "
                f"{each.sample.product or flavor.accelerator} devices; set memoryPerDevice",
            )
        elif (flavor.count or 1) > 1 and is_one_per_process(row, resource, each.sample.product):
            why = NoPlacement(
                Reason.UNSUPPORTED_ACCELERATOR,
                f"flavor {flavor.name}: of {each.sample.product or resource} a process can use one "
                "alone: drop count, or choose larger slices or whole devices",
            )
        else:
            usable.append(each)
    return usable, why


def _claimed(
    flavor: Flavor, table: AcceleratorTable, row: Accelerator, nodes: Sequence[NodeFacts]
) -> tuple[DeviceOffer, ...] | NoPlacement:
    """Devices of a ResourceClaimTemplate: kube-scheduler knows where they are, we do not."""
    memory, template = _own_memory(flavor), flavor.resource_claim_template_name or ""
    if memory is None:
        return NoPlacement(
            Reason.UNKNOWN_DEVICE_MEMORY,
            f"flavor {flavor.name}: set memoryPerDevice, no label tells what ResourceClaimTemplate "
            f"{template} brings",
        )
    words = f"device: {format_bytes(memory)} each (memoryPerDevice), by claim {template}"
    device = replace(_bare(flavor, table, row, memory, words), claim_template=template)
    return (DeviceOffer(device, tuple(nodes)),)


def _standalone(
    flavor: Flavor, table: AcceleratorTable, row: Accelerator, nodes: Sequence[NodeFacts]
) -> tuple[DeviceOffer, ...]:
    """The device of a machine outside of Kubernetes, which has the host's memory."""
    own = _own_memory(flavor)
    memory = own or max(node.memory_bytes for node in nodes) * 3 // 4
    source = "memoryPerDevice" if own else "three quarters of the host's memory"
    words = f"device {row.title}: {format_bytes(memory)} ({source})"
    return (DeviceOffer(_bare(flavor, table, row, memory, words), tuple(nodes)),)


def _bare(
    flavor: Flavor, table: AcceleratorTable, row: Accelerator, memory: int, words: str
) -> DeviceRoom:
    """Devices that no extended resource stands for."""
    return DeviceRoom(
        accelerator=row.name,
        backend=row.backend,
        product="",
        resource="",
        count=flavor.count or 1,
        memory_bytes=memory,
        margin_bytes=parse_bytes(table.backend_of(row).margin),
        bytes_per_second=row.default_gigabytes_per_second * 1e9,
        is_unified=row.is_unified,
        max_parallel=row.max_parallel,
        reasons=(words,),
    )


def _resource(flavor: Flavor, row: Accelerator, nodes: Sequence[NodeFacts]) -> str | None:
    """The first wanted resource that any node offers."""
    for name in wanted_resources(flavor, row):
        if any(node.resources.get(name, 0) > 0 for node in nodes):
            return name
    return None


def wanted_resources(flavor: Flavor, row: Accelerator) -> tuple[str, ...]:
    """Extended resources that give the flavor its devices, the preferred one first."""
    if flavor.resource_name is not None:
        return (flavor.resource_name,)
    return (*row.shared_resources, *row.resources) if flavor.sharing == "Shared" else row.resources


def _own_memory(flavor: Flavor) -> int | None:
    return None if flavor.memory_per_device is None else parse_bytes(flavor.memory_per_device)


def _all_taken(flavor: Flavor, resource: str, count: int, nodes: Sequence[FreeNode]) -> NoPlacement:
    nearest = max(nodes, key=lambda each: (each.free, each.allocatable, each.node.name))
    missing = max(1, count - nearest.free)
    total = sum(each.allocatable for each in nodes)
    free = sum(each.free for each in nodes)
    promised = " (promised to replicas that have no node yet)" if nearest.free >= count else ""
    return NoPlacement(
        Reason.NO_NODE_FITS,
        f"flavor {flavor.name}: {count} x {resource} on one node are needed; {free} of {total} are "
        f"free{promised}, the nearest is node {nearest.node.name} with {nearest.free} of "
        f"{nearest.allocatable}: {missing} missing",
        missing_devices=missing,
    )
