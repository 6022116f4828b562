"""Processes that an earlier runner left behind, found and killed.

Owns: the record of each container's first process (pid, start time, boot), and the search by
record and by environment. Does not own: noticing that a runner died (``guard.py``).
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from terrace.local.pods import processes

_RECORD = "process.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def record(folder: Path, pid: int) -> None:
    """Notes the first process of the container at ``folder``."""
    stat = processes.read_stat(pid)
    if stat is not None:
        entry = {"pid": pid, "start_ticks": stat.start_ticks, "boot_id": _boot_id()}
        # On a full disk the environment and the parent-death signal must do.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _RECORD).write_text(json.dumps(entry))


def find(folder: Path) -> set[int]:
    """Every live process of the pods below ``folder``."""
    found = processes.below(folder)
    for path in folder.glob(f"*/containers/*/{_RECORD}"):
        leader = _recorded(path)
        if leader is not None:
            found |= processes.session(leader) | processes.family(leader)
    return found


def kill(folder: Path, timeout_s: float = 10.0) -> int:
    """Kills all of them; returns how many there were. Gives up after ``timeout_s``."""
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        left = find(folder)
        if not left:
            break
        killed |= left
        processes.kill_all(left)
        time.sleep(0.02)
    return len(killed)


def _recorded(path: Path) -> int | None:
    """The pid in a record, if it still means the same process."""
    try:
        entry = json.loads(path.read_text())
        stat = processes.read_stat(int(entry["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stat is None or stat.state in "ZX" or entry.get("boot_id") != _boot_id():
        return None
    return stat.pid if stat.start_ticks == entry.get("start_ticks") else None


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
