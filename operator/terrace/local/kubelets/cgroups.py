"""The cluster's part of the cgroup tree: made before its kubelets start, removed after they ended.

Owns: both versions of cgroups. Does not own: what kubelet and runc make below, except that all of
it goes when it is empty. Next: ``janitor.py`` removes what a killed cluster leaves.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from terrace.local.errors import LocalClusterError

NEEDED = ("cpu", "cpuset", "memory", "pids")
_MOUNTS = Path("/proc/self/mountinfo")
_POLL_S = 0.02


def hierarchies(mountinfo: str) -> dict[Path, frozenset[str]]:
    """Where cgroups are mounted, with the controllers that the mount names (none: version 2)."""
    found = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            path = Path(before.split()[4])
            found[path] = frozenset(options.split(",") if kind == "cgroup" else ())
    return found


def obstacle() -> str | None:
    """Why no limits can be set on this machine, or None."""
    mounted = hierarchies(_MOUNTS.read_text())
    have = set().union(*mounted.values())
    unified = _unified(mounted)
    if unified:
        have |= set((unified / "cgroup.controllers").read_text().split())
    missing = [name for name in NEEDED if name not in have]
    if missing:
        return f"no cgroup controller {', '.join(missing)} is mounted below /sys/fs/cgroup"
    return None


def make(name: str, nodes: list[str]) -> None:
    """One group per node, with all controllers that kubelet sets limits in."""
    mounted = hierarchies(_MOUNTS.read_text())
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
    roots = [root / name for root in hierarchies(_MOUNTS.read_text())]
    while left := [root for root in roots if root.exists()]:
        for root in left:
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):  # it is in use, or was removed beside us
                    Path(folder).rmdir()
        if time.monotonic() >= deadline:
            return not any(root.exists() for root in roots)
        time.sleep(_POLL_S)
    return True


def members(name: str) -> set[int]:
    """The processes of the cluster's pods."""
    pids: set[int] = set()
    for root in hierarchies(_MOUNTS.read_text()):
        for folder, _, _ in os.walk(root / name):
            with contextlib.suppress(OSError):  # its pod has just ended
                pids.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return pids


def _unified(mounted: dict[Path, frozenset[str]]) -> Path | None:
    """The mount of version 2, where it is the one that controls anything."""
    for root, controllers in mounted.items():
        if not controllers and (root / "cgroup.controllers").read_text().split():
            return root
    return None


def _inherit_cpuset(group: Path) -> None:
    """In version 1 a new group may use no CPU at all until it is told which."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not (group / file).read_text().strip():
            (group / file).write_text((group.parent / file).read_text())


def _delegate(root: Path, group: Path) -> None:
    """In version 2 a group gets the controllers that its parent hands down."""
    for parent in (root, group):
        have = (parent / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{name}" for name in have if name in {*NEEDED, "hugetlb", "io"})
        try:
            (parent / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            raise LocalClusterError(
                f"{parent} hands no cgroup controllers down ({error.strerror}): in a container, "
                "give it a cgroup tree of its own to manage, or start the cluster on its host"
            ) from error
