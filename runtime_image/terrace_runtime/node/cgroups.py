"""Our control groups: where they are, what they allow and what is used. Versions 1, 2 and both.

Owns: finding each controller's folder through /proc/self, and the files' names and units. Does not
own: what follows from a limit (``fitting.py``). A group's limit binds all below it, so that the
smallest on the way up to the mount's top counts; above that a container sees nothing, but version 1
tells its memory (``hierarchical_memory_limit``). Files: the kernel's "Control Group v2" guide and
"cgroup-v1/memory.rst", "scheduler/sched-bwc.rst", "accounting/psi.rst".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.node.files import as_number, number, number_list, table, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path("/")
_NO_LIMIT: Final = 1 << 62
"""Version 1 writes the largest number of whole pages where there is no limit."""
_USUAL: Final = "/sys/fs/cgroup"
_MICRO, _NANO = 1_000_000, 1_000_000_000
_PRESSURE: Final = re.compile(r"^(some|full) avg10=([\d.]+) .*total=(\d+)$", re.MULTILINE)
_FIELDS_OF_ROW: Final = 3


@dataclass(frozen=True, slots=True)
class Group:
    """One controller's folder of the group that we are in."""

    folder: Path
    top: Path
    """Where the hierarchy is mounted: nothing above it can be seen."""
    is_v2: bool

    def upwards(self) -> Iterator[Path]:
        """Our own folder first, the top last."""
        for folder in (self.folder, *self.folder.parents):
            yield folder
            if folder == self.top:
                return


@dataclass(frozen=True, slots=True)
class CpuState:
    """``None`` where nobody limits or counts."""

    quota: float | None = None
    """CPUs that all threads together may keep busy."""
    allowed: frozenset[int] = frozenset()
    """The cpuset; empty: none is told."""
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Bytes and counts; ``None`` where nobody limits or counts."""

    limit_bytes: int | None = None
    high_bytes: int | None = None
    """Above it the kernel slows the group down (version 2)."""
    used_bytes: int | None = None
    """Page cache of the group counts."""
    reclaimable_bytes: int | None = None
    """Of it: pages of files not used lately, which the kernel takes back first."""
    peak_bytes: int | None = None
    kills: int | None = None
    """Processes that the kernel killed for memory."""
    times_full: int | None = None
    """How often the limit was hit."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """Share of the last ten seconds in which some, or all, tasks waited; and seconds in all."""

    some: float = 0.0
    full: float = 0.0
    some_seconds: float = 0.0
    full_seconds: float = 0.0


def cpu_state(root: Path = ROOT) -> CpuState:
    """What of the CPUs we may use."""
    group, sets = find("cpu", root), find("cpuset", root)
    stat = {} if group is None else table(group.folder / "cpu.stat")
    seconds = None
    if "throttled_usec" in stat:
        seconds = stat["throttled_usec"] / _MICRO
    elif "throttled_time" in stat:
        seconds = stat["throttled_time"] / _NANO
    return CpuState(
        quota=None if group is None else _quota(group),
        allowed=frozenset() if sets is None else _cpuset(sets),
        periods=stat.get("nr_periods"),
        throttled_periods=stat.get("nr_throttled"),
        throttled_seconds=seconds,
    )


def memory_state(root: Path = ROOT) -> MemoryState:
    """What of the memory we may use, and use."""
    group = find("memory", root)
    if group is None:
        return MemoryState()
    return _memory_v2(group) if group.is_v2 else _memory_v1(group)


def kills(root: Path = ROOT) -> int:
    """How often the kernel killed for memory in our group so far; 0 where nobody counts."""
    return memory_state(root).kills or 0


def pressure(resource: str, root: Path = ROOT) -> Pressure | None:
    """How long tasks waited for ``cpu``, ``memory`` or ``io``; None where nobody tells."""
    group = find("", root)
    if group is None:
        return None
    rows = {
        kind: (float(share) / 100, int(total) / _MICRO)
        for kind, share, total in _PRESSURE.findall(text(group.folder / f"{resource}.pressure"))
    }
    if not rows:
        return None
    some, full = rows.get("some", (0.0, 0.0)), rows.get("full", (0.0, 0.0))
    return Pressure(some[0], full[0], some[1], full[1])


def find(controller: str, root: Path = ROOT) -> Group | None:
    """Our group of ``controller``; empty: of version 2, whatever it controls."""
    ours = _memberships(text(root / "proc/self/cgroup"))
    mounts = _mounts(text(root / "proc/self/mountinfo"))
    path = ours.get(controller) if controller else None
    if path is not None:
        usual = ("/", f"{_USUAL}/{controller}")
        return _locate(root, mounts.get(controller, usual), path, is_v2=False)
    if "" not in ours:
        return None
    return _locate(root, mounts.get("", ("/", _USUAL)), ours[""], is_v2=True)


def _memberships(rows: str) -> dict[str, str]:
    """Our group's path by controller of version 1; that of version 2 under the empty name."""
    found: dict[str, str] = {}
    for row in rows.splitlines():
        fields = row.split(":", 2)
        if len(fields) == _FIELDS_OF_ROW:
            found |= dict.fromkeys(fields[1].split(","), fields[2])
    return found


def _mounts(rows: str) -> dict[str, tuple[str, str]]:
    """By controller as above: which part of the hierarchy is mounted, and where."""
    found: dict[str, tuple[str, str]] = {}
    for row in rows.splitlines():
        before, dash, after = row.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(kind) < _FIELDS_OF_ROW:  # noqa: PLR2004 - proc(5)
            continue
        place = (_unescaped(fields[3]), _unescaped(fields[4]))
        if kind[0] == "cgroup2":
            found.setdefault("", place)
        elif kind[0] == "cgroup":
            for controller in kind[2].split(","):
                found.setdefault(controller, place)
    return found


def _locate(root: Path, mount: tuple[str, str], path: str, *, is_v2: bool) -> Group | None:
    part, where = mount
    top = root / where.lstrip("/")
    # A path from outside our view of the hierarchy begins with "..".
    names = [name for name in path.split("/") if name not in ("", "..")]
    hidden = [name for name in part.split("/") if name not in ("", "..")]
    if hidden and names[: len(hidden)] == hidden:
        names = names[len(hidden) :]
    # A container may see its group as the top of what is mounted although its path says otherwise.
    for start in range(len(names) + 1):
        folder = top.joinpath(*names[start:])
        if folder.is_dir():
            return Group(folder, top, is_v2)
    return None


def _unescaped(word: str) -> str:
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), word)


def _quota(group: Group) -> float | None:
    found = []
    for folder in group.upwards():
        if group.is_v2:
            words = text(folder / "cpu.max").split()
            quota, period = (as_number(word) for word in (*words, "", "")[:2])
        else:
            quota = number(folder / "cpu.cfs_quota_us")
            period = number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            found.append(quota / period)
    return min(found, default=None)


def _cpuset(group: Group) -> frozenset[int]:
    names = ("cpuset.cpus.effective",) if group.is_v2 else ("cpuset.effective_cpus", "cpuset.cpus")
    lists = (number_list(text(group.folder / name)) for name in names)
    return next((found for found in lists if found), frozenset())


def _memory_v2(group: Group) -> MemoryState:
    own = group.folder
    events = table(own / "memory.events")
    return MemoryState(
        limit_bytes=_least(number(folder / "memory.max") for folder in group.upwards()),
        high_bytes=_least(number(folder / "memory.high") for folder in group.upwards()),
        used_bytes=number(own / "memory.current"),
        reclaimable_bytes=table(own / "memory.stat").get("inactive_file"),
        peak_bytes=number(own / "memory.peak"),
        kills=events.get("oom_kill"),
        times_full=events.get("max"),
    )


def _memory_v1(group: Group) -> MemoryState:
    own = group.folder
    stat = table(own / "memory.stat")
    limits = [number(folder / "memory.limit_in_bytes") for folder in group.upwards()]
    return MemoryState(
        limit_bytes=_least([*limits, stat.get("hierarchical_memory_limit")]),
        used_bytes=number(own / "memory.usage_in_bytes"),
        reclaimable_bytes=stat.get("total_inactive_file", stat.get("inactive_file")),
        peak_bytes=number(own / "memory.max_usage_in_bytes"),
        kills=table(own / "memory.oom_control").get("oom_kill"),
        times_full=number(own / "memory.failcnt"),
    )


def _least(limits: Iterable[int | None]) -> int | None:
    return min(
        (each for each in limits if each is not None and 0 <= each < _NO_LIMIT), default=None
    )
