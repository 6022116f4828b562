"""Daemon processes that outlive the command that started them, and are never mistaken for others.

Owns: starting, recognising and ending a process by (pid, start time, boot). Does not own: which
processes there are (``control_plane.py``) and where they are recorded (``state.py``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terrace.local.environment import pids, variables_of
from terrace.local.state import ProcessRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MARKER = "TERRACE_CLUSTER_DIR"
"""In the environment of every process of a cluster: finds what a killed command left behind."""
_POD_MARKER = "TERRACE_POD_ROOT"
_HELD_FD = 3
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
"""No such pid, or one that has come to be a thread's: kernels differ in the word for that."""
_POLL_S = 0.02


def spawn(argv: list[str], log: Path, env: Mapping[str, str], held_fd: int | None) -> ProcessRecord:
    """Start a process in a session of its own, with ``held_fd`` (if any) as its descriptor 3.

    posix_spawn rather than subprocess: the child is meant to outlive us, and a Popen object
    complains about exactly that.
    """
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if held_fd is not None:
        actions.append((os.POSIX_SPAWN_DUP2, held_fd, _HELD_FD))
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True)
    return record_of(pid)


def is_alive(record: ProcessRecord) -> bool:
    """Whether that very process still runs, if only with one last thread."""
    stat = _stat(record.pid)
    if stat is None or stat.start_ticks != record.start_ticks or record.boot_id != _boot_id():
        return False
    return stat.state not in "ZX" or not _is_finished(record.pid, stat)


def stop(records: Iterable[ProcessRecord], grace_s: float) -> None:
    """SIGTERM, then SIGKILL after ``grace_s``; returns when none of them is left."""
    waiting = [record for record in records if _signal(record, signal.SIGTERM)]
    if not _wait_gone(waiting, grace_s):
        for record in waiting:
            _signal(record, signal.SIGKILL)
        _wait_gone(waiting, 30.0)


def left_behind(root: Path) -> list[ProcessRecord]:
    """Processes of this user that carry the cluster's marker, recorded or not."""
    found = []
    for pid in pids():
        if pid != os.getpid() and _is_marked(pid, root):
            record = record_of(pid)
            if is_alive(record):
                found.append(record)
    return found


def record_of(pid: int) -> ProcessRecord:
    """What tells this process from any other, now that it runs."""
    stat = _stat(pid)
    return ProcessRecord(pid=pid, start_ticks=stat.start_ticks if stat else 0, boot_id=_boot_id())


def open_pidfd(pid: int) -> int | None:
    """A descriptor that can only ever mean the process that has this pid now; None: there is none.

    The ids of threads are of the same numbers: that of a process which ended may be a thread's by
    now, of which no descriptor can be had.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise


def _is_marked(pid: int, root: Path) -> bool:
    try:
        if Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            return False
    except OSError:
        return False  # it ended
    variables = variables_of(pid)
    own = os.fsencode(f"{MARKER}={root}")
    pod = os.fsencode(f"{_POD_MARKER}={root}/node/")
    return any(variable == own or variable.startswith(pod) for variable in variables)


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = _POLL_S) -> bool:
    """Poll until the condition holds; False when it did not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def _wait_gone(records: Sequence[ProcessRecord], timeout_s: float) -> bool:
    return wait_until(lambda: not any(is_alive(record) for record in records), timeout_s)


def _signal(record: ProcessRecord, number: signal.Signals) -> bool:
    """Send only to that very process: a pidfd cannot come to mean another one in between."""
    fd = open_pidfd(record.pid)
    if fd is None:
        return False
    try:
        if not is_alive(record):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        return True
    finally:
        os.close(fd)


@dataclass(frozen=True)
class _Stat:
    state: str
    num_threads: int
    start_ticks: int


def _is_finished(pid: int, stat: _Stat) -> bool:
    """Whether a zombie has no thread left; collects it when it is our own child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return stat.num_threads <= 1  # it has another parent, who may never collect it


def _stat(pid: int) -> _Stat | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything, so count from its end.
    fields = line.rpartition(")")[2].split()
    return _Stat(state=fields[0], num_threads=int(fields[17]), start_ticks=int(fields[19]))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
