"""Did the engine end for want of memory, and whose? The operator plans anew after such an end.

Owns: reading it from llama.cpp's words and from the kernel's count of kills in our control group.
Does not own: ending (``server.py``). The words are those of llama.cpp 0c1e570 and its backends; a
shortage that they do not name ends as any other failure. Next: ``server.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

from terrace_runtime.contract import EXIT_DEVICE_MEMORY, EXIT_HOST_MEMORY

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_BUFFER = re.compile(r"(?:unable|failed) to allocate (\S+) buffer\b(?! for)")
"""ggml-alloc.c, llama-model.cpp: the name of the buffer's type."""
_HOST_BUFFER = re.compile(r"CPU|AMX|output$|\S+_Host$")
_DEVICE = re.compile(
    r"cudaMalloc failed|CUDA error: out of memory|ErrorOutOfDeviceMemory|"
    r"OutOfDeviceMemoryError|failed to allocate Metal buffer|can't allocate \d+ Bytes of memory on"
)
_HOST = re.compile(r"bad_alloc|failed to allocate buffer of size \d+|failed to allocate +[\d.]+ MB")


class OutOfMemoryKills:
    """How often the kernel has killed in our group since this was made."""

    def __init__(self, root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> None:
        """``root`` is where control groups are mounted, ``membership`` which one we are in."""
        self._file = _counter_file(root, membership)
        self._before = self._read()

    @property
    def count(self) -> int:
        """0 where nobody counts."""
        return self._read() - self._before

    def _read(self) -> int:
        if self._file is None:
            return 0
        try:
            rows = self._file.read_text().splitlines()
        except OSError:
            return 0
        found = (row.split() for row in rows if row.startswith("oom_kill "))
        return next((int(row[1]) for row in found), 0)


def memory_exit(words: str, kills: int) -> int | None:
    """Exit code for an engine that ended with ``words``; None: memory was not the reason.

    ``kills``: how often the kernel has killed for memory in our group.
    """
    buffers = _BUFFER.findall(words)
    if _DEVICE.search(words) or any(not _HOST_BUFFER.match(name) for name in buffers):
        return EXIT_DEVICE_MEMORY
    is_killed = "SIGKILL" in words and kills > 0
    return EXIT_HOST_MEMORY if is_killed or buffers or _HOST.search(words) else None


def _counter_file(root: Path, membership: Path) -> Path | None:
    """The file with our group's count, of control groups version 2 or 1.

    A container may see its group as the root of what is mounted, or not.
    """
    try:
        rows = [row.split(":", 2) for row in membership.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in (row for row in rows if len(row) == 3):  # noqa: PLR2004 - fields
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (
            (root / "memory", "memory.oom_control") if controllers else (root, "memory.events")
        )
        parts = Path(path).parts[1:]
        folders = (base.joinpath(*parts[start:]) for start in range(len(parts) + 1))
        for folder in folders:
            if (folder / name).exists():
                return folder / name
    return None
