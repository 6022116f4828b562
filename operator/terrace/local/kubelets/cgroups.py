"""The cluster's part of the cgroup tree: made before its kubelets start, removed after they ended.

Owns: both versions of cgroups. Does not own: what kubelet and runc make below, except that all of
it goes when it is empty. Next: ``janitor.py`` removes what a killed cluster leaves.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from terrace.local.errors import LocalClusterError

NEEDED = ("cpu", "cpuset", "memory", "pids")
_POLL_S = 0.02

_IN_A_CONTAINER = ": in a container, start it with a cgroup tree of its own to manage"

Mounted = Mapping[Path, frozenset[str]]
"""Where cgroups are mounted, with the controllers that the mount names (none: version 2)."""


def mounted_here() -> Mounted:
    """The mounts that this process sees."""
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def hierarchies(mountinfo: str) -> Mounted:
    """The mounts of cgroups among all. Pure."""
    found = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            path = Path(before.split()[4])
            found[path] = frozenset(options.split(",") if kind == "cgroup" else ())
    return found


def obstacle(mounted: Mounted) -> str | None:
    """Why no limits can be set on this machine, or None."""
    have = set().union(*mounted.values())
    unified = _unified(mounted)
    if unified:
        have |= set(_words(unified / "cgroup.controllers"))
    missing = [name for name in NEEDED if name not in have]
    if missing:
        return f"no cgroup controller {', '.join(missing)} is mounted below /sys/fs/cgroup"
    for root in mounted:
        if not os.access(root, os.W_OK):
            return f"the cgroups in {root} cannot be written{_IN_A_CONTAINER}"
    if unified and _is_inner_and_full(unified):
        return f"{unified} holds processes and can hand no controllers down{_IN_A_CONTAINER}"
    return None


def make(name: str, nodes: list[str], mounted: Mounted) -> None:
    """One group per node, with all controllers that kubelet sets limits in."""
    unified = _unified(mounted)
    for root, controllers in mounted.items():
        for node in nodes:
            (root / name / node).mkdir(parents=True, exist_ok=True)
        if "cpuset" in controllers:
            for group in (root / name, *(root / name / node for node in nodes)):
                _inherit_cpuset(group)
    if unified:
        _delegate(unified, unified / name)


def remove(name: str, timeout_s: float) -> bool:
    """Remove all groups of the cluster once they are empty; False when some stayed."""
    deadline = time.monotonic() + timeout_s
    roots = [root / name for root in mounted_here()]
    while left := [root for root in roots if root.exists()]:
        for root in left:
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):  # it is in use, or was removed beside us
                    Path(folder).rmdir()
        if time.monotonic() >= deadline:
            return not any(root.exists() for root in roots)
        time.sleep(_POLL_S)  # the kernel tells nobody when a group's last member has gone
    return True


def members(name: str) -> set[int]:
    """The processes of the cluster's pods."""
    pids: set[int] = set()
    for root in mounted_here():
        for folder, _, _ in os.walk(root / name):
            with contextlib.suppress(OSError):  # its pod has just ended
                pids.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return pids - {0}  # such a one is of a PID namespace that we cannot see


def _unified(mounted: Mounted) -> Path | None:
    """The mount of version 2, where there is no version 1 beside it."""
    return next(iter(mounted), None) if not any(mounted.values()) else None


def _is_inner_and_full(root: Path) -> bool:
    """Whether version 2 forbids children with limits: only the true root may hold processes."""
    if set(NEEDED) <= set(_words(root / "cgroup.subtree_control")):
        return False
    return (root / "cgroup.type").exists() and bool(_words(root / "cgroup.procs"))


def _words(file: Path) -> list[str]:
    return file.read_text().split()


def _inherit_cpuset(group: Path) -> None:
    """In version 1 a new group may use no CPU at all until it is told which."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not (group / file).read_text().strip():
            (group / file).write_text((group.parent / file).read_text())


def _delegate(root: Path, group: Path) -> None:
    """In version 2 a group gets the controllers that its parent hands down."""
    for parent in (root, group):
        have = _words(parent / "cgroup.controllers")
        wanted = " ".join(f"+{name}" for name in have if name in {*NEEDED, "hugetlb", "io"})
        try:
            (parent / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            raise LocalClusterError(
                f"{parent} hands no controllers down ({error.strerror}){_IN_A_CONTAINER}"
            ) from error
