"""A real memory limit: a control group of its own, of version 1 or 2, as a pod has.

Needs root and a writable /sys/fs/cgroup; ``unavailable`` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """A group whose processes together may use so many bytes; files that they read count too."""

    folder: Path
    is_v2: bool

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What goes before a command line, so that it and all its children run in the group."""
        enter = f'echo $$ > {self.folder}/cgroup.procs && exec "$@"'
        return ("/bin/sh", "-c", enter, "limited")

    @property
    def peak_bytes(self) -> int:
        """Most that was in use."""
        name = "memory.peak" if self.is_v2 else "memory.max_usage_in_bytes"
        return int((self.folder / name).read_text())

    @property
    def times_full(self) -> int:
        """How often the kernel had to take pages back at the limit."""
        if self.is_v2:
            rows = (self.folder / "memory.events").read_text().splitlines()
            return next(int(row.split()[1]) for row in rows if row.split()[0] == "max")
        return int((self.folder / "memory.failcnt").read_text())


def unavailable() -> str:
    """Why there can be no limit here; empty when there can."""
    if os.geteuid() != 0:
        return "only root can limit the memory of a group"
    try:
        with limited_memory(64 * 1024 * 1024):
            return ""
    except OSError as error:
        return f"control groups cannot be made here: {error}"


@contextlib.contextmanager
def limited_memory(limit_bytes: int) -> Iterator[MemoryLimit]:
    """A group with this limit and no swap; its processes must have ended at the end."""
    version_1 = _ROOT / "memory"
    is_v2 = not (version_1 / "memory.limit_in_bytes").exists()
    parent = _ROOT if is_v2 else version_1
    if is_v2:
        (parent / "cgroup.subtree_control").write_text("+memory")
    folder = parent / f"terrace-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        (folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        swap = folder / ("memory.swap.max" if is_v2 else "memory.swappiness")
        if swap.exists():
            swap.write_text("0")
        yield MemoryLimit(folder, is_v2)
    finally:
        wait_for("the end of all in the group", lambda: _is_removed(folder), timeout=60)


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def drop_from_page_cache(path: Path) -> None:
    """Let the next reader read ``path`` from the disk; pages in use by others would be theirs."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
