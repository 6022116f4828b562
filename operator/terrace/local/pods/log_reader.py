"""Reading a container's log as ``kubectl logs`` asks for it.

Owns: tail, since, limit, timestamps, follow over a rotation. Does not own: writing (``logs.py``).
Next: ``kubelet_api.py`` streams it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from terrace.local.pods.logs import ContainerLog, log_path, rfc3339_nano, rotated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

_BLOCK = 1 << 16
_FOLLOW_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class LogOptions:
    """The query of ``/containerLogs``; None means absent."""

    is_following: bool = False
    has_timestamps: bool = False
    tail_lines: int | None = None
    max_bytes: int | None = None
    since_ns: int | None = None
    """Nanoseconds since the epoch: older lines are left out."""


def runs(folder: Path) -> list[int]:
    """The runs of a container that have a log, oldest first."""
    return sorted(
        int(path.name.partition(".")[0])
        for path in folder.glob("*.log")
        if path.name.partition(".")[0].isdigit()
    )


async def read_log(
    folder: Path, run: int, options: LogOptions, live: ContainerLog | None
) -> AsyncIterator[bytes]:
    """The log's text in pieces; following ends when the run has ended."""
    left = options.max_bytes
    async for record in _records(log_path(folder, run), options, live):
        text = render(record, options)
        if left is not None:
            text = text[:left]
            left -= len(text)
        if text:
            yield text
        if left == 0:
            return


def render(record: bytes, options: LogOptions) -> bytes:
    """One line of the file as text for the reader; empty where it is too old or torn."""
    moment, _, rest = record.partition(b" ")
    _, _, rest = rest.partition(b" ")
    tag, space, text = rest.partition(b" ")
    if not space:
        return b""
    if options.since_ns is not None and moment < rfc3339_nano(options.since_ns):
        return b""
    head = moment + b" " if options.has_timestamps else b""
    return head + text + (b"\n" if tag == b"F" else b"")


async def _records(
    path: Path, options: LogOptions, live: ContainerLog | None
) -> AsyncIterator[bytes]:
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(file.open("rb")) for file in (rotated(path), path) if file.exists()
        ]
        _seek_tail(files, options.tail_lines)
        for file in files:
            for record in _whole_lines(file):
                yield record
        if files and options.is_following and live is not None:
            async for record in _following(files[-1], path, live):
                yield record


async def _following(file: BinaryIO, path: Path, live: ContainerLog) -> AsyncIterator[bytes]:
    """What is written from here on, over rotations, until the run ends."""
    current, opened = file, contextlib.ExitStack()
    with opened:
        while True:
            # Looked at before reading, so that what came in between is read and not missed.
            is_last, is_old = live.is_closed, _has_rotated(current, path)
            for record in _whole_lines(current):
                yield record
            if is_old:
                opened.close()
                current = opened.enter_context(path.open("rb"))
            elif is_last:
                return
            else:
                await live.wait_changed(_FOLLOW_TIMEOUT_S)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines up to the file's end; a torn one stays unread for the next look."""
    while True:
        start = file.tell()
        block = file.read(_BLOCK)
        end = block.rfind(b"\n") + 1
        if end == 0:
            file.seek(start)
            return
        file.seek(start + end)
        yield from block[: end - 1].split(b"\n")


def _has_rotated(file: BinaryIO, path: Path) -> bool:
    try:
        return path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except OSError:
        return False


def _seek_tail(files: Sequence[BinaryIO], num_lines: int | None) -> None:
    """Places the files so that reading on gives the last ``num_lines`` lines of all together."""
    if num_lines is None:
        return
    for file in reversed(files):
        num_lines -= _seek_back(file, num_lines)


def _seek_back(file: BinaryIO, num_lines: int) -> int:
    """Goes back ``num_lines`` lines from the end, or to the start; returns how many it went."""
    position, found = file.seek(0, os.SEEK_END), 0
    while position > 0 and found <= num_lines:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        at = len(block)
        while found <= num_lines and (at := block.rfind(b"\n", 0, at)) >= 0:
            found += 1
        if found > num_lines:
            # The newline before the first wanted line.
            file.seek(position + at + 1)
            return num_lines
    file.seek(0)
    return found
