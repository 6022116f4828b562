"""A place to build in: the cache, its lock, its rename, and a long build's progress.

Owns: where builds are kept, that an entry is whole or absent however a build ends, running a build
with a line every few seconds, BuildError. Does not own: what is built (``wheel.py`` makes our
wheel, ``tests/bench/peer.py`` the llama-server that we are measured against) or from what
(``source.py``). Standard library only, for it runs before the environment is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PROGRESS_EVERY_S = 5.0
LOG_TAIL_LINES = 40
MIN_FREE_BYTES = 1536 * 1024**2
"""Sources, objects and libraries of one build take about 1 GiB."""

_NINJA_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]", re.MULTILINE)


class BuildError(Exception):
    """A build cannot start or went wrong; the message says why and what to do."""


def cache_root(environment: Mapping[str, str] = os.environ) -> Path:
    """Where builds are kept: $XDG_CACHE_HOME/terrace, by default ~/.cache/terrace."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "terrace"


@dataclass
class Workshop:
    """One locked place to build in; whatever is not published is gone afterwards."""

    staging: Path
    log: Path
    lock_fd: int
    every_s: float = PROGRESS_EVERY_S
    """Seconds between two lines of progress."""
    _more_fds: list[int] = field(default_factory=list)
    """Locks of what several entries are made with, held beside that of our own."""

    @contextlib.contextmanager
    def alone_with(self, shared: Path) -> Iterator[None]:
        """Hold ``shared``, which makers of other entries use too, for the length of the block."""
        shared.parent.mkdir(parents=True, exist_ok=True)
        with locked(shared.with_name(f".{shared.name}.lock")) as lock_fd:
            self._more_fds.append(lock_fd)
            try:
                yield
            finally:
                self._more_fds.remove(lock_fd)

    def run(
        self, argv: Sequence[str], what: str, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Run ``argv`` into the log, telling on stderr every few seconds how far it is.

        Raises BuildError with the end of the log when it fails; kills its whole process group
        when we are interrupted.
        """
        started = time.monotonic()
        temporary = self.staging / "tmp"
        temporary.mkdir(exist_ok=True)
        with self.log.open("ab") as sink:
            sink.write(f"\n$ {' '.join(argv)}\n".encode())
            sink.flush()
            offset = sink.tell()
            with held_interrupts() as let_through:
                process = subprocess.Popen(  # noqa: S603 - argv is ours, without a shell
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**environment, "TMPDIR": str(temporary)},
                    start_new_session=True,
                    # Children keep the locks, so that nobody builds beside what we left behind.
                    pass_fds=(self.lock_fd, *self._more_fds),
                )
                try:
                    let_through()
                    while (status := self._waited(process)) is None:
                        say(f"{what}: {_stage(self.log, offset)}, {_elapsed(started)}")
                except BaseException:
                    _kill_group(process)
                    raise
        if status != 0:
            tail = "\n".join(_read_tail(self.log, offset).splitlines()[-LOG_TAIL_LINES:])
            raise BuildError(f"{what} failed (exit code {status}):\n{tail}\nThe log: {self.log}")
        say(f"{what}: done in {_elapsed(started)}")

    def _waited(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit status, or None after the time between two lines."""
        try:
            return process.wait(timeout=self.every_s)
        except subprocess.TimeoutExpired:
            return None


def cached(
    entry: Path,
    make: Callable[[Workshop, Path], None],
    needed_bytes: int = MIN_FREE_BYTES,
    is_current: Callable[[Path], bool] = Path.is_dir,
) -> Path:
    """Return the folder ``entry``, made by ``make(workshop, folder)`` unless it ``is_current``.

    ``make`` fills a folder beside it, which is renamed only when it is complete; a build that is
    killed leaves nothing that looks whole. Several processes may ask at once: one builds.
    """
    if is_current(entry):
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(entry.parent).free
    if free < needed_bytes:
        raise BuildError(
            f"{entry.parent} has {free // 1024**2} MiB free, a build needs "
            f"{needed_bytes // 1024**2} MiB: make room or set XDG_CACHE_HOME."
        )
    with locked(entry.with_name(f".{entry.name}.lock")) as lock_fd:
        if is_current(entry):
            return entry
        shutil.rmtree(entry, ignore_errors=True)
        staging = entry.with_name(f".{entry.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        log = entry.with_name(f"{entry.name}.log")
        log.unlink(missing_ok=True)
        try:
            result = staging / "result"
            result.mkdir(parents=True)
            make(Workshop(staging, log, lock_fd), result)
            _flush(result)
            result.rename(entry)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return entry


def say(line: str) -> None:
    """Print a progress line on stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Wait for, then hold, the lock file ``path``."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another build holds {path}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold back what interrupts us; it happens when the yielded function is called.

    ``Popen`` returns after the child has begun: a handler that raises in between leaves a child
    that nobody knows. As in ``terrace.local.interrupts``, which may not be installed yet.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # handlers run in the main thread only
        return
    came: list[int] = []
    with contextlib.ExitStack() as restored:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            restored.callback(signal.signal, each, signal.getsignal(each))
            signal.signal(each, lambda number, _: came.append(number))

        def let_through() -> None:
            restored.close()
            while came:
                signal.raise_signal(came.pop(0))

        try:
            yield let_through
        finally:
            let_through()


def _flush(folder: Path) -> None:
    """Bring the files of ``folder`` to the disk, so that a rename never outlives its content."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def _read_tail(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - 65_536))
        return file.read().decode(errors="replace")


def _stage(log: Path, offset: int) -> str:
    steps = _NINJA_STEP.findall(_read_tail(log, offset))
    return "step {} of {}".format(*steps[-1]) if steps else "preparing"


def _elapsed(started: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes}:{seconds:02d}"
