"""Reading a container's log as ``kubectl logs`` asks for it.

Owns: tail, since, limit, timestamps, follow over a rotation. Does not own: writing (``logs.py``).
Next: ``kubelet_api.py`` streams it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from terrace.local.pods.logs import ContainerLog, log_path, rfc3339_nano, rotated

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
    files = [file.open("rb") for file in (rotated(path), path) if file.exists()]
    try:
        _seek_tail(files, options.tail_lines)
        for file in files[:-1]:
            for record in _whole_lines(file):
                yield record
        while files:
            for record in _whole_lines(files[-1]):
                yield record
            if not options.is_following or live is None:
                return
            if _has_rotated(files[-1], path):
                for record in _whole_lines(files[-1]):
                    yield record
                files.append(path.open("rb"))
                files.pop(-2).close()
            elif live.is_closed:
                for record in _whole_lines(files[-1]):
                    yield record
                return
            else:
                await live.wait_changed(_FOLLOW_TIMEOUT_S)
    finally:
        for file in files:
            file.close()


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
        yield from block[:end].splitlines()


def _has_rotated(file: BinaryIO, path: Path) -> bool:
    try:
        return path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except OSError:
        return False


def _seek_tail(files: list[BinaryIO], num_lines: int | None) -> None:
    """Places the files so that reading on gives the last ``num_lines`` lines of all together."""
    if num_lines is None:
        return
    for file in reversed(files):
        position = file.seek(0, os.SEEK_END)
        while position > 0 and num_lines >= 0:
            size = min(_BLOCK, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            newlines = [at for at, byte in enumerate(block) if byte == 0x0A]
            # The newline that ends the last wanted line's predecessor is the place to start from.
            if len(newlines) > num_lines:
                file.seek(position + newlines[-num_lines - 1] + 1)
                num_lines = -1
            else:
                num_lines -= len(newlines)
                file.seek(position)
        if position == 0 and num_lines >= 0:
            file.seek(0)
        elif num_lines == -1:
            num_lines = -2
        else:
            file.seek(0, os.SEEK_END)
