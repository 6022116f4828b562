"""A container's output on disk, in kubelet's format and with its bound.

Owns: CRI lines (``TIME STREAM F|P TEXT``), rotation, the file names of restarts. Does not own:
reading for ``kubectl logs`` (``log_reader.py``). Next: ``container.py`` feeds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 10 * 1024 * 1024
"""Bound of one file; one rotated file is kept beside it, so a container holds twice this."""
MAX_LINE_BYTES = 16 * 1024
"""Longer lines are cut into pieces marked P, the last one F."""

Stream = Literal["stdout", "stderr"]


def rotated(path: Path) -> Path:
    """Where the older half of a log lies."""
    return path.with_name(path.name + ".1")


def log_path(folder: Path, num_restarts: int) -> Path:
    """The log of one run of a container."""
    return folder / f"{num_restarts}.log"


def prune(folder: Path, num_restarts: int) -> None:
    """Removes the logs of all runs but this one and the one before (``logs --previous``)."""
    for path in folder.glob("*.log*"):
        run = path.name.split(".", 1)[0]
        if run.isdigit() and int(run) < num_restarts - 1:
            path.unlink(missing_ok=True)


def rfc3339_nano(nanoseconds: int) -> bytes:
    """Nanoseconds since the epoch as RFC 3339 in UTC with nine digits."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime(f"%Y-%m-%dT%H:%M:%S.{rest:09d}Z", time.gmtime(seconds)).encode()


class ContainerLog:
    """The log of one run; ``feed`` takes whatever the pipe gave."""

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._num_bytes = self._file.tell()
        self._partial: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self._changed = asyncio.Event()
        self.is_closed = False
        self.num_lost_bytes = 0
        """What a full disk swallowed; the container goes on."""

    def feed(self, stream: Stream, chunk: bytes) -> None:
        """Writes every complete line, holds the rest back until it is one."""
        lines = (self._partial[stream] + chunk).split(b"\n")
        rest = lines.pop()
        records = []
        for line in lines:
            *pieces, last = _cut(line)
            records += [(piece, b"P") for piece in pieces] + [(last, b"F")]
        while len(rest) > MAX_LINE_BYTES:
            records.append((rest[:MAX_LINE_BYTES], b"P"))
            rest = rest[MAX_LINE_BYTES:]
        self._partial[stream] = rest
        self._write(stream, records)

    def close(self) -> None:
        """Writes what has no newline, and adds none; wakes the followers."""
        for stream, rest in self._partial.items():
            if rest:
                self._write(stream, [(rest, b"P")])
        self.is_closed = True
        self._file.close()
        self._changed.set()

    async def wait_changed(self, timeout_s: float) -> None:
        """Returns after the next write, the close, or the timeout."""
        if self.is_closed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def _write(self, stream: Stream, records: list[tuple[bytes, bytes]]) -> None:
        if not records:
            return
        head = rfc3339_nano(time.time_ns()) + b" " + stream.encode() + b" "
        content = b"".join(head + tag + b" " + line + b"\n" for line, tag in records)
        try:
            self._rotate_for(len(content))
            self._num_bytes += self._file.write(content)
        except OSError:
            self.num_lost_bytes += len(content)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _rotate_for(self, num_bytes: int) -> None:
        if self._num_bytes == 0 or self._num_bytes + num_bytes <= self._max_bytes:
            return
        self._file.close()
        self.path.replace(rotated(self.path))
        self._file = self.path.open("ab", buffering=0)
        self._num_bytes = 0


def _cut(line: bytes) -> list[bytes]:
    if len(line) <= MAX_LINE_BYTES:
        return [line]
    return [line[at : at + MAX_LINE_BYTES] for at in range(0, len(line), MAX_LINE_BYTES)]
