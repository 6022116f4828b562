"""Which processes there are, and which variables each was started with, as the kernel tells them.

Owns: reading /proc without being misled by what happens meanwhile: a process in the middle of an
exec, or one that starts another and ends. Does not own: what the variables mean (``processes.py``
and ``pods/processes.py`` look for markers).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC = Path("/proc")
_POLL_S = 0.0005
_USUAL_BYTES = 1 << 16
_LONGEST_EXEC_S = 10.0
"""A new program's first pages may have to come from a disk that others keep busy."""
_MOST_LISTS = 10
"""A busy machine may start processes as fast as we look at them."""


def pids() -> Iterator[int]:
    """Every process, then those that were started while the caller looked at the ones before.

    Between a list and the look at one of its processes, that one may start another and end, as
    daemons do: of the two, the list held the one that is gone.
    """
    seen: set[int] = set()
    for _ in range(_MOST_LISTS):
        fresh = {int(one.name) for one in _PROC.iterdir() if one.name.isdigit()} - seen
        if not fresh:
            return
        yield from fresh
        seen |= fresh


def variables_of(pid: int) -> list[bytes]:
    """``NAME=value`` of each variable; nothing for what ended or is not ours to read.

    While a process executes another program, its new memory has no environment for some tens of
    microseconds (longer where the processor is taken away), and it reads as empty: a daemon looked
    at just then would seem to be nobody's.
    """
    folder = _PROC / str(pid)
    deadline = time.monotonic() + _LONGEST_EXEC_S
    try:
        while not (text := _environment(folder)):
            before = _memory(folder)
            text = _environment(folder)
            if text or (before == _memory(folder) and before[0] != b"0"):
                break
            (folder / "exe").readlink()  # fails for a kernel thread and a zombie, who get neither
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
    except OSError:
        return []
    return text.split(b"\0")


def _environment(folder: Path) -> bytes:
    """All of it from one call: after an exec, a second one finds the old program's memory gone."""
    size = _USUAL_BYTES
    fd = os.open(folder / "environ", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(text := os.pread(fd, size, 0)) == size:
            size *= 4
    finally:
        os.close(fd)
    return text


def _memory(folder: Path) -> list[bytes]:
    """Where a program's code ends and its stack begins; both differ from one exec to the next.

    The kernel notes the end of the code (until then 0) once arguments and environment are in
    place: they themselves come one after the other.
    """
    fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    return fields[24:26]
