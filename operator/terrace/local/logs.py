"""Reading and bounding the logs of a cluster's processes.

Owns: tail, follow, and cutting a log that grew too long. Does not own: who writes them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_LOG_BYTES = 64 * 1024 * 1024
_KEPT_BYTES = 8 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
_POLL_S = 0.2


def start_afresh(log: Path) -> None:
    """Keep one older log beside the new one."""
    if log.exists():
        log.replace(_older(log))


def bound(log: Path) -> None:
    """Cut a log that a running process has made too long; its end goes to ``<name>.log.1``.

    Safe while the process writes, because it appends: its next line starts the file anew.
    """
    if not log.exists() or log.stat().st_size <= MAX_LOG_BYTES:
        return
    with log.open("rb") as file:
        file.seek(-_KEPT_BYTES, os.SEEK_END)
        _older(log).write_bytes(file.read(_KEPT_BYTES))
    os.truncate(log, 0)


def show(log: Path, lines: int, write: Callable[[str], None]) -> None:
    """Write the last lines."""
    if log.exists():
        with log.open(errors="replace") as file:
            for line in deque(file, maxlen=lines):
                write(line.rstrip("\n"))


def follow(log: Path, write: Callable[[str], None]) -> None:
    """Write what is appended from now on, also after the file was cut or replaced.

    A line is written when it is whole, or as it is where no more of it can come. Never returns; an
    exception such as KeyboardInterrupt ends it.
    """
    file, half = log.open("rb"), b""
    file.seek(0, os.SEEK_END)
    try:
        while True:
            half += file.readline(MAX_LINE_BYTES)
            if half.endswith(b"\n") or len(half) >= MAX_LINE_BYTES:
                write(_text(half))
                half = b""
                continue
            time.sleep(_POLL_S)
            if _was_replaced(file.fileno(), file.tell(), log):
                for rest in (half + file.read()).splitlines():  # written since we looked
                    write(_text(rest))
                file.close()
                file, half = log.open("rb"), b""
    finally:
        file.close()


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\n")


def _was_replaced(fd: int, position: int, log: Path) -> bool:
    try:
        now = log.stat()
    except FileNotFoundError:
        return False
    return not os.path.samestat(os.fstat(fd), now) or now.st_size < position


def _older(log: Path) -> Path:
    return log.with_suffix(".log.1")
