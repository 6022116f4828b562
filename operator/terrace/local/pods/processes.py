"""Starting, watching and ending the processes of containers.

Owns: spawning in a session of its own with the parent's death as a signal, the exit by pidfd, the
process tree and its memory from /proc, ending every member however it hid. Does not own: when.
Next: ``container.py``; ``guard.py`` does the same when the agent was killed.

Who belongs to a container: the session of its first process, all children of members, and every
process whose environment still names the container's TERRACE_POD_ROOT.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from terrace.local.environment import pids, variables_of

POD_ROOT = "TERRACE_POD_ROOT"
_PROC = Path("/proc")
_CHUNK = 1 << 16
_FIRST_PAUSE_S = 0.005
_LAST_PAUSE_S = 1.0
"""A process that hangs in the kernel cannot be killed: looking for it must stay cheap."""
OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]
_FALLBACK = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
)
FALLBACK_PREFIX = (sys.executable, "-I", "-S", "-c", _FALLBACK)
"""See death_signal_prefix."""


@functools.cache
def death_signal_prefix() -> tuple[str, ...]:
    """A command that asks the kernel to kill what it executes when the agent's thread dies.

    setpriv costs a millisecond; the fallback, for machines without util-linux, about thirty.
    Neither runs Python between fork and exec, which is unsafe in a process with threads.
    """
    setpriv = shutil.which("setpriv")
    if setpriv:
        command = [setpriv, "--pdeathsig", "KILL", "true"]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:  # noqa: S603  fixed words
            return (setpriv, "--pdeathsig", "KILL", "--")
    return FALLBACK_PREFIX


@dataclass(frozen=True)
class ProcessStat:
    """The fields of /proc/PID/stat that identify a process and its family."""

    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int


class Process:
    """A started process; ``exited`` resolves to its exit code, 128 + n after signal n."""

    def __init__(self, popen: subprocess.Popen[bytes], on_output: OnOutput) -> None:
        self._popen = popen
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self.pid = popen.pid
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._collect)
        self._pipes: dict[int, Literal["stdout", "stderr"]] = {}
        self._open("stdout", popen.stdout)
        self._open("stderr", popen.stderr)

    def signal(self, number: signal.Signals) -> None:
        """Signals the first process only, as a container runtime signals PID 1."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def drain(self) -> None:
        """Takes what is left in the pipes and closes them, though a stranger may hold an end."""
        for descriptor in list(self._pipes):
            while descriptor in self._pipes and self._read(descriptor):
                pass
            self._close(descriptor)

    def _open(self, name: Literal["stdout", "stderr"], pipe: IO[bytes] | None) -> None:
        assert pipe is not None, "spawn() asks for both pipes"
        descriptor = pipe.fileno()
        os.set_blocking(descriptor, False)
        self._pipes[descriptor] = name
        self._loop.add_reader(descriptor, self._read, descriptor)

    def reap(self) -> None:
        """Lets the kernel forget an ended process; until then its pid cannot mean another one."""
        self._popen.wait()

    def _collect(self) -> None:
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self.exited.done():
            was_signal = result.si_code != os.CLD_EXITED
            self.exited.set_result(128 * was_signal + result.si_status)

    def _read(self, descriptor: int) -> bool:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self._close(descriptor)
            return False
        self._on_output(self._pipes[descriptor], chunk)
        return True

    def _close(self, descriptor: int) -> None:
        name = self._pipes.pop(descriptor, None)
        if name is None:
            return
        self._loop.remove_reader(descriptor)
        pipe = self._popen.stdout if name == "stdout" else self._popen.stderr
        if pipe is not None:
            pipe.close()


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    on_output: OnOutput,
) -> Process:
    """Starts ``argv`` in a session of its own; must be called on the event loop's thread.

    Raises:
        FileNotFoundError: there is no such command; PermissionError: it may not be executed.
    """
    command = _resolve(argv[0], env, folder)
    popen = subprocess.Popen(  # noqa: S603  running what the pod says is what a node is for
        [*death_signal_prefix(), command, *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        cwd=folder,
        start_new_session=True,
        bufsize=0,
    )
    return Process(popen, on_output)


def _resolve(command: str, env: Mapping[str, str], folder: Path) -> str:
    """The file to execute; a missing one is found here and not in a child's exit code."""
    found = shutil.which(str(folder / command) if "/" in command else command, path=env.get("PATH"))
    if found:
        return found
    if "/" in command and (folder / command).exists():
        raise PermissionError(f'exec: "{command}": permission denied')
    where = "no such file or directory" if "/" in command else "executable file not found in $PATH"
    raise FileNotFoundError(f'exec: "{command}": {where}')


def read_stat(pid: int) -> ProcessStat | None:
    """What /proc says of a process; None when there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()
    return ProcessStat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def members(leader: int, root: Path | None) -> set[int]:
    """Every live process of a container: by session, by descent, and by environment."""
    own = None if root is None else os.fsencode(f"{POD_ROOT}={root}")
    return _those(lambda stat: stat.session == leader or (own and own in variables_of(stat.pid)))


def below(folder: Path) -> set[int]:
    """Every live process whose TERRACE_POD_ROOT lies below ``folder``, and its descendants."""
    prefix = os.fsencode(f"{POD_ROOT}={folder}/")
    return _those(lambda stat: any(entry.startswith(prefix) for entry in variables_of(stat.pid)))


def session(leader: int) -> set[int]:
    """The live processes of a session, from a picture at most a second old."""
    return {stat.pid for stat in _recent_processes(int(time.monotonic())) if stat.session == leader}


@functools.lru_cache(maxsize=1)
def _recent_processes(_second: int) -> list[ProcessStat]:
    """One walk over /proc serves all containers of a runner."""
    return list(_live())


def family(leader: int) -> set[int]:
    """The live descendants of a process and itself: cheap, but blind to those that broke away."""
    found, queue = {leader}, [leader]
    while queue:
        for child in _children(queue.pop()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def memory_bytes(pids: Iterable[int]) -> int:
    """Anonymous and shared memory resident in ``pids`` (a page shared by two counts twice)."""
    return sum(_resident(pid) for pid in pids)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each, except to this very process."""
    for pid in pids:
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


async def kill_members(leader: int, root: Path | None) -> None:
    """Kills until nothing is left: a process may have forked between the look and the kill."""
    pause_s = _FIRST_PAUSE_S
    while left := members(leader, root):
        kill_all(left)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)


def _live() -> Iterator[ProcessStat]:
    """Every live process of the machine (zombies left out), as it is when its turn comes."""
    for pid in pids():
        stat = read_stat(pid)
        if stat is not None and stat.state not in "ZX":
            yield stat


def _those(belongs: Callable[[ProcessStat], object]) -> set[int]:
    """The live processes that belong, with their descendants."""
    everyone: list[ProcessStat] = []
    found: set[int] = set()
    for stat in _live():
        everyone.append(stat)
        if belongs(stat):
            found.add(stat.pid)
    return _with_descendants(found, everyone)


def _with_descendants(found: set[int], everyone: Sequence[ProcessStat]) -> set[int]:
    grown = set(found)
    while True:
        more = {stat.pid for stat in everyone if stat.parent in grown} - grown
        if not more:
            return grown - {os.getpid()}
        grown |= more


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                listed = (thread / "children").read_bytes()
                found += [int(child) for child in listed.split()]
    return found


def _resident(pid: int) -> int:
    try:
        status = (_PROC / str(pid) / "status").read_bytes()
    except OSError:
        return 0
    kilobytes = 0
    for line in status.splitlines():
        if line.startswith((b"RssAnon:", b"RssShmem:")):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024
