"""What a flavor has for one replica: memory, CPU, devices; or why it has nothing.

Owns: Room, NoPlacement, threads. Does not own: which nodes are of a flavor (``candidates.py``),
what fits into the room (``placement.py``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.quantity import parse_bytes, parse_millis
from terrace.planner.candidates import candidates, largest_free
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace.api.offload import Offload
    from terrace.api.pool import Flavor
    from terrace.planner.devices import DeviceRoom
    from terrace.planner.inputs import Cluster
    from terrace.planner.nodes import NodeFacts

CORE = 1000
"""Thousandths of a CPU."""
MAX_DEFAULT_THREADS = 16
REQUEST_MILLIS_PER_THREAD = 250


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """Nothing fits: a condition's reason and message.

    ``missing_bytes``: by how much the nearest flavor is too small; 0 when memory is not the reason.
    """

    reason: Reason
    message: str
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What one flavor has for one replica."""

    flavor: Flavor
    memory_bytes: int
    memory_words: str
    cpu_millis: int
    threads: int
    cpu_words: str
    device: DeviceRoom | None = None
    """None: the flavor has no devices."""


def room_of(flavor: Flavor, offload: Offload, cluster: Cluster) -> Room | NoPlacement:
    """What ``flavor`` has, by the largest of its nodes."""
    return _refuse_device(flavor, offload) or _host_room(flavor, cluster)


def _refuse_device(flavor: Flavor, offload: Offload) -> NoPlacement | None:
    if offload.profile != "DeviceOnly" or flavor.accelerator != "cpu":
        return None
    return NoPlacement(
        Reason.NO_DEVICE,
        f"flavor {flavor.name} has accelerator cpu, and offload.profile DeviceOnly keeps weights "
        "and KV cells on a device: choose a flavor with one, or profile Auto",
    )


def _host_room(flavor: Flavor, cluster: Cluster) -> Room | NoPlacement:
    theirs = candidates(flavor, cluster.nodes)
    if not theirs.nodes:
        why = theirs.refused or "the cluster has no nodes"
        return NoPlacement(Reason.NO_NODE_FITS, f"flavor {flavor.name}: no node fits: {why}")
    cpu, threads, cpu_words = _cpu(flavor, theirs.nodes)
    strong = [node for node in theirs.nodes if node.cpu_millis >= cpu]
    if not strong:
        most = max(node.cpu_millis for node in theirs.nodes) / CORE
        return NoPlacement(
            Reason.NO_NODE_FITS,
            f"flavor {flavor.name}: host.cpu is {flavor.host.cpu}, its largest node has {most:g}",
        )
    free = largest_free(strong, flavor.name, cluster.used.memory)
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
