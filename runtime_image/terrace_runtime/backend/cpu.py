"""How many threads this process may really use.

Owns: the count from affinity and the cgroup's quota. Does not own: what is done with it. Next:
``llama.py`` sets llama.cpp's threads to it when RuntimeConfig.threads is 0.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_threads(
    cgroup_root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")
) -> int:
    """CPUs in the affinity mask, or the cgroup's quota rounded down where that is less.

    Rounded down: a thread more than the quota is throttled, and all others wait for it at each
    barrier of the graph.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus(cgroup_root, membership)
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def _cgroup_cpus(root: Path, membership: Path) -> float | None:
    """The tightest cgroup v2 quota from our own cgroup up to the root, in CPUs."""
    try:
        line = next(row for row in membership.read_text().splitlines() if row.startswith("0::"))
    except (OSError, StopIteration):
        return None
    path = root / line.removeprefix("0::").lstrip("/")
    quotas = []
    for folder in (path, *path.parents):
        if root not in (folder, *folder.parents):
            break
        quota = _parse_cpu_max(folder / "cpu.max")
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def _parse_cpu_max(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
