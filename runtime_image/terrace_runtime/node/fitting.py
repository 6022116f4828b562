"""Does what the container has fit what the plan needs? Numbers in, sentences out. Pure.

Owns: the count of threads, refusals and warnings. Does not own: reading the numbers
(``cgroups.py``, ``machine.py``). A refusal is certain before anything is loaded; a warning is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.node.cgroups import CpuState, MemoryState
    from terrace_runtime.node.machine import Machine

_ALMOST: Final = 0.05
"""A quota this little below a whole number counts as that number: it throttles 1 % of the time."""


def usable_cpus(affinity: frozenset[int], cpu: CpuState) -> frozenset[int]:
    """CPUs that our threads may run on: the mask, and the cpuset where it says less."""
    return (affinity & cpu.allowed) or affinity


def usable_threads(cpus: int, quota: float | None) -> int:
    """Threads that can compute at the same time.

    The quota is rounded down: a thread more than it is throttled, and all others wait for it at
    each barrier of the graph.
    """
    return max(1, cpus if quota is None else min(cpus, int(quota + _ALMOST)))


def refusal(config: RuntimeConfig, memory_bytes: int | None) -> str:
    """Why ``config`` cannot fit into the container's memory; empty: it may."""
    kv = config.kv
    needed = kv.host_bytes + (kv.prefetch_bytes if kv.disk_bytes else 0)
    if memory_bytes is None or needed <= memory_bytes:
        return ""
    return (
        f"kv.host_bytes and kv.prefetch_bytes of the plan are {shown(needed)}, more than the "
        f"container's memory limit of {shown(memory_bytes)}: raise the limit, or lower "
        "spillThreshold or prefetchWindow of the model"
    )


def warnings(
    config: RuntimeConfig,
    machine: Machine,
    cpu: CpuState,
    memory: MemoryState,
    held_bytes: int,
) -> tuple[str, ...]:
    """What does not fit, with the way out.

    ``held_bytes``: anonymous memory once loaded, without that of the tiers, or 0.
    """
    found = (
        _threads(config, machine, cpu),
        _memory(config, smallest(memory.limit_bytes, machine.memory_bytes or None), held_bytes),
        _numa(machine),
        _huge_pages(machine),
    )
    return tuple(each for each in found if each)


def smallest(*given: int | None) -> int | None:
    """The least of what is known."""
    return min((each for each in given if each is not None), default=None)


def shown(count: int) -> str:
    """Bytes for a person, in one unit, and exactly."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit} ({count} bytes)"
    return f"{count} bytes"


def _threads(config: RuntimeConfig, machine: Machine, cpu: CpuState) -> str:
    cpus = len(usable_cpus(machine.cpus, cpu))
    usable = usable_threads(cpus, cpu.quota)
    if config.threads <= usable:
        return ""
    quota = "" if cpu.quota is None else f" and a quota of {cpu.quota:g}"
    return (
        f"threads of the plan is {config.threads}, but the container has {cpus} CPUs{quota}: "
        f"{usable} run; raise the CPU limit or plan fewer"
    )


def _memory(config: RuntimeConfig, limit_bytes: int | None, held_bytes: int) -> str:
    if limit_bytes is None or not held_bytes:
        return ""
    kv = config.kv
    needed = held_bytes + kv.host_bytes + (kv.prefetch_bytes if kv.disk_bytes else 0)
    if needed <= limit_bytes:
        return ""
    return (
        f"the replica holds {shown(held_bytes)} and kv.host_bytes and kv.prefetch_bytes of the "
        f"plan let it grow to {shown(needed)}, but its memory limit is {shown(limit_bytes)}: the "
        "kernel will end it when they fill; raise the limit or lower spillThreshold"
    )


def _numa(machine: Machine) -> str:
    on = [str(node.number) for node in machine.numa if node.cpus]
    if len(on) < 2:  # noqa: PLR2004 - one node is what is wanted
        return ""
    return (
        f"the container's CPUs lie on NUMA nodes {', '.join(on)}, so that threads read weights "
        "over the link between them; give the kubelet --topology-manager-policy=single-numa-node "
        "and --cpu-manager-policy=static, and the pod whole CPUs"
    )


def _huge_pages(machine: Machine) -> str:
    reserved = machine.huge_pages * machine.huge_page_bytes
    if not reserved:
        return ""
    return (
        f"the node reserves {shown(reserved)} as huge pages, which llama.cpp does not use; no pod "
        "of a model gets this memory"
    )
