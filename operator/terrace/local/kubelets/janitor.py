"""``python -m terrace.local.kubelets.janitor PID TICKS BOOT GROUP``: clears up after a cluster.

Owns: what the kernel does not take back when the process that owns the namespaces ends, which is
the cgroups. It runs beside that process, waits for its end however that comes, and ends too. Does
not own: an orderly stop (``terrace.local.shutdown``), which does the same by itself.
"""

from __future__ import annotations

import os
import select
import sys

from terrace.local import processes
from terrace.local.kubelets import cgroups
from terrace.local.state import ProcessRecord

_TIMEOUT_S = 60.0


def argv(outer: ProcessRecord, group: str) -> list[str]:
    """The command line that waits for ``outer``."""
    return [
        sys.executable, "-m", "terrace.local.kubelets.janitor",
        str(outer.pid), str(outer.start_ticks), outer.boot_id, group,
    ]  # fmt: skip


def main(words: list[str]) -> None:
    """Wait for the end of the process, then remove the group."""
    pid, ticks, boot, group = words
    outer = ProcessRecord(pid=int(pid), start_ticks=int(ticks), boot_id=boot)
    fd = processes.open_pidfd(outer.pid)
    if fd is not None:  # else it ended before we looked
        if processes.is_alive(outer):
            select.select([fd], [], [])
        os.close(fd)
    if not cgroups.remove(group, _TIMEOUT_S):
        sys.exit(f"cgroup {group} is still in use after {_TIMEOUT_S:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
