"""This machine as a node: its CPUs, its memory or this process's share of it, its devices.

Owns: reading them. Does not own: what may run on them (``target.py``). A container's limits count,
because a replica that ran here would have them too. Next: ``target.py``.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from terrace.cli.node_shape import Devices, NodeShape

CORE: Final = 1000
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found, and what has to be said about it."""

    shape: NodeShape
    notes: tuple[str, ...] = ()


def this_machine() -> Machine:
    """What one replica could have here."""
    cpu_limit, memory_limit = cgroup_limits(_CGROUPS, _OWN_CGROUP)
    cpus = _usable_cpus() * CORE
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    notes = []
    if memory_limit is not None and memory_limit < memory:
        memory = memory_limit
        notes.append("memory is the limit of this process's control group")
    if cpu_limit is not None and cpu_limit < cpus:
        cpus = cpu_limit
        notes.append("CPUs are the limit of this process's control group")
    devices, why_none = metal_device() or nvidia_devices()
    notes.append(why_none)
    return Machine(NodeShape(cpus, memory, devices), tuple(note for note in notes if note))


def cgroup_limits(root: Path, own: Path) -> tuple[int | None, int | None]:
    """Thousandths of a CPU and bytes that this process may have at most; None: no limit.

    The least of all groups above counts (version 2; of version 1, the one that is mounted).
    """
    cpu: list[int] = []
    memory: list[int] = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                for group in _upwards(root, path):
                    cpu += _cpu_max(group / "cpu.max")
                    memory += _number(group / "memory.max")
            elif "memory" in controllers.split(","):
                for group in _upwards(root / "memory", path):
                    memory += _number(group / "memory.limit_in_bytes")
    return min(cpu, default=None), min(memory, default=None)


def metal_device() -> tuple[Devices, str] | None:
    """The GPU of a Mac of Apple's own make, which computes in the host's memory."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Devices("metal", 1), ""
    return None


def nvidia_devices() -> tuple[Devices | None, str]:
    """NVIDIA's devices by its own library, and why there are none."""
    try:
        import pynvml  # noqa: PLC0415 - only where a driver may be
    except ImportError:
        return None, "NVIDIA devices were not looked for: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, "no NVIDIA driver answers: this machine is planned as CPU only"
    try:
        return _like_devices(pynvml)
    except pynvml.NVMLError as error:
        return None, f"the NVIDIA driver says: {error}; planned as CPU only"
    finally:
        pynvml.nvmlShutdown()


def _like_devices(nvml: Any) -> tuple[Devices | None, str]:
    count = nvml.nvmlDeviceGetCount()
    handles = [nvml.nvmlDeviceGetHandleByIndex(each) for each in range(count)]
    if not handles:
        return None, "the NVIDIA driver knows no device: planned as CPU only"
    sizes = [int(nvml.nvmlDeviceGetMemoryInfo(each).total) for each in handles]
    name = nvml.nvmlDeviceGetName(handles[0])
    note = "devices differ: each is planned as the smallest" if len(set(sizes)) > 1 else ""
    product = (name.decode() if isinstance(name, bytes) else str(name)).replace(" ", "-")
    return Devices("nvidia", len(handles), min(sizes), product), note


def _usable_cpus() -> int:
    if platform.system() == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _upwards(root: Path, path: str) -> list[Path]:
    """The group at ``path`` and all above it, the root included."""
    group = root / path.strip("/")
    if ".." in group.parts:
        return [root]  # Of another namespace: what is mounted is our own.
    return [group, *(each for each in group.parents if each.is_relative_to(root))]


def _number(path: Path) -> list[int]:
    with suppress(OSError, ValueError):
        value = int(path.read_text())
        return [value] if 0 < value < 1 << 60 else []
    return []


def _cpu_max(path: Path) -> list[int]:
    with suppress(OSError, ValueError):
        quota, period = path.read_text().split()
        return [max(1, int(quota) * CORE // int(period))]
    return []
