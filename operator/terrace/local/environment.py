"""Which variables a process was started with, as the kernel tells them.

Owns: reading /proc/PID/environ without being misled by a process in the middle of an exec. Does
not own: what the variables mean (``processes.py`` and ``pods/processes.py`` look for markers).
"""

from __future__ import annotations

import time
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.0005
_LONGEST_EXEC_S = 1.0


def variables_of(pid: int) -> list[bytes]:
    """``NAME=value`` of each variable; nothing for what ended or is not ours to read.

    While a process executes another program, its new memory has neither arguments nor environment
    for some tens of microseconds (longer where the processor is taken away), and both read as
    empty: a daemon looked at just then would seem to be nobody's.
    """
    folder = _PROC / str(pid)
    deadline = time.monotonic() + _LONGEST_EXEC_S
    try:
        while not (text := (folder / "environ").read_bytes()):
            # The kernel gives a program its arguments and its environment together.
            if (folder / "cmdline").read_bytes():
                text = (folder / "environ").read_bytes()
                break
            (folder / "exe").readlink()  # fails for a kernel thread and a zombie, who get neither
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
    except OSError:
        return []
    return text.split(b"\0")
