"""What a flavor has for one replica: memory, CPU, devices; or why it has nothing.

Owns: what hosts have, threads. Does not own: which nodes are of a flavor (``candidates.py``), their
devices (``device_rooms.py``), what fits into a room (``placement.py``). Pure. Next:
``placement.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.quantity import parse_bytes, parse_millis
from terrace.planner.accelerators import CPU
from terrace.planner.candidates import candidates, largest_free
from terrace.planner.device_refusals import row_of
from terrace.planner.device_rooms import device_offers
from terrace.planner.nodes import format_bytes
from terrace.planner.room import NoPlacement, Room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace.api.offload import Offload
    from terrace.api.pool import Flavor
    from terrace.planner.accelerators import Accelerator
    from terrace.planner.inputs import Cluster, Usage
    from terrace.planner.nodes import NodeFacts
    from terrace_runtime.contract import ModelFacts

__all__ = ["NoPlacement", "Room", "rooms_of"]

CORE = 1000
"""Thousandths of a CPU."""
MAX_DEFAULT_THREADS = 16
REQUEST_MILLIS_PER_THREAD = 250


def rooms_of(
    flavor: Flavor, offload: Offload, facts: ModelFacts, cluster: Cluster
) -> tuple[Room, ...] | NoPlacement:
    """What ``flavor`` has, one room for each class of its nodes, the fastest first.

    ``offload``: the model's settings over its pool's; ``facts``: whose tensors devices must run.
    At least one room; each is that of the best of its nodes.
    """
    refusal = _refuse_device(flavor, offload)
    if refusal is not None:
        return refusal
    row: Accelerator | None = None
    if flavor.accelerator != CPU:
        known = row_of(flavor, offload, facts, cluster)
        if isinstance(known, NoPlacement):
            return known
        row = known
    theirs = candidates(flavor, cluster.nodes)
    if not theirs.nodes:
        why = theirs.refused or "the cluster has no nodes"
        return NoPlacement(Reason.NO_NODE_FITS, f"flavor {flavor.name}: no node fits: {why}")
    if row is None:
        room = _host_room(flavor, theirs.nodes, cluster.used)
        return room if isinstance(room, NoPlacement) else (room,)
    return _device_rooms(flavor, row, theirs.nodes, cluster)


def _device_rooms(
    flavor: Flavor, row: Accelerator, nodes: tuple[NodeFacts, ...], cluster: Cluster
) -> tuple[Room, ...] | NoPlacement:
    offers = device_offers(flavor, row, nodes, cluster)
    if isinstance(offers, NoPlacement):
        return offers
    rooms, failure = [], None
    for offer in offers:
        room = _host_room(flavor, offer.nodes, cluster.used)
        if isinstance(room, NoPlacement):
            failure = room
        else:
            rooms.append(replace(room, device=offer.device))
    return tuple(rooms) or failure or NoPlacement(Reason.NO_NODE_FITS, "no room")


def _refuse_device(flavor: Flavor, offload: Offload) -> NoPlacement | None:
    if offload.profile != "DeviceOnly" or flavor.accelerator != CPU:
        return None
    return NoPlacement(
        Reason.NO_DEVICE,
        f"flavor {flavor.name} has accelerator cpu, and offload.profile DeviceOnly keeps weights "
        "and KV cells on a device: choose a flavor with one, or profile Auto",
    )


def _host_room(flavor: Flavor, nodes: Sequence[NodeFacts], used: Usage) -> Room | NoPlacement:
    """What the hosts among ``nodes`` have, by the one with most memory free."""
    cpu, threads, cpu_words = _cpu(flavor, nodes)
    strong = [node for node in nodes if node.cpu_millis >= cpu]
    if not strong:
        most = max(node.cpu_millis for node in nodes) / CORE
        return NoPlacement(
            Reason.NO_NODE_FITS,
            f"flavor {flavor.name}: host.cpu is {flavor.host.cpu}, its largest node has {most:g}",
        )
    free = largest_free(strong, flavor.name, used.memory)
    words = f"{format_bytes(free.bytes)} are free on {free.node}, the largest"
    memory = free.bytes
    if flavor.host.memory is not None and parse_bytes(flavor.host.memory) < memory:
        memory = parse_bytes(flavor.host.memory)
        words = f"host.memory is {flavor.host.memory}"
    return Room(flavor, memory, words, cpu, threads, cpu_words)


def _cpu(flavor: Flavor, nodes: Sequence[NodeFacts]) -> tuple[int, int, str]:
    """Thousandths of a CPU that one replica requests, its threads, and why."""
    if flavor.host.cpu is not None:
        cpu = parse_millis(flavor.host.cpu)
        return cpu, max(1, cpu // CORE), f"host.cpu of flavor {flavor.name}"
    least = min(node.cpu_millis for node in nodes)
    threads = max(1, min(MAX_DEFAULT_THREADS, least // CORE - 1))
    request = min(threads * REQUEST_MILLIS_PER_THREAD, max(1, least // 2))
    words = (
        f"the smallest node has {least / CORE:g} CPUs; host.cpu is not set, so only a quarter of a "
        "CPU per thread is reserved and models that are seldom busy share a node"
    )
    return request, threads, words
