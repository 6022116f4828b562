"""How much memory the pod's processes really take, from /proc.

Owns: the peak of anonymous and shared memory of this process and all below it. Mapped model files
are left out: the kernel takes their pages back. Next: ``RuntimeReport`` tells the operator.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


class MemoryMeter:
    """Remembers the highest sum seen; sampled from outside."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    def sample(self) -> int:
        """Bytes now; also raises the peak. 0 where there is no /proc."""
        total = sum(_anonymous_bytes(pid) for pid in _family(os.getpid()))
        self.peak_bytes = max(self.peak_bytes, total)
        return total


def _family(root: int) -> list[int]:
    """``root`` and its descendants; processes that end meanwhile are left out."""
    found, todo = [root], [root]
    while todo:
        pid = todo.pop()
        try:
            threads = list((_PROC / str(pid) / "task").iterdir())
        except OSError:
            continue
        for thread in threads:
            try:
                children = [int(word) for word in (thread / "children").read_text().split()]
            except OSError:
                continue
            found += children
            todo += children
    return found


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:"))
    )
