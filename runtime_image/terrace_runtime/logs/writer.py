"""Brings lines to a file descriptor without ever making the one who logs wait.

Owns: the bounded queue behind a slow reader, and counting what was dropped. Does not own: what a
line is (``lines.py``). A pipe with room takes a line at once, so that nothing is lost when the
process dies; whatever is full, or may block in other ways, is left to a thread.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_BYTES: Final = 1024 * 1024
_ATOMIC_BYTES: Final = select.PIPE_BUF
"""poll(2) calls a pipe writable when so many bytes fit; they are also never torn apart."""


class LineWriter:
    """Many threads may write; lines come out whole and in order."""

    def __init__(self, fd: int, note_dropped: Callable[[int], bytes]) -> None:
        """``note_dropped`` makes the line that tells how many others are missing before it."""
        self._fd = fd
        self._note_dropped = note_dropped
        mode = os.fstat(fd).st_mode
        self._is_file, self._is_pipe = stat.S_ISREG(mode), stat.S_ISFIFO(mode)
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._is_writing = False
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Never blocks and never raises; a line that finds no room is counted."""
        with self._changed:
            if not self._queue and not self._is_writing and self._has_room(line):
                self._put(line)
            elif self._queued_bytes + len(line) > QUEUE_BYTES:
                self._dropped += 1
            else:
                self._queue.append(line)
                self._queued_bytes += len(line)
                self._start()
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is out, or for so long; whether it is."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._queue or self._is_writing:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def _has_room(self, line: bytes) -> bool:
        if self._is_file:
            return True
        if not self._is_pipe or len(line) > _ATOMIC_BYTES:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(0))

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._queue:
                    self._changed.wait()
                line = self._queue.popleft()
                self._queued_bytes -= len(line)
                self._is_writing = True
                if self._dropped and self._queued_bytes < QUEUE_BYTES // 2:
                    count, self._dropped = self._dropped, 0
                    line += self._note_dropped(count)
            self._put(line)

    def _put(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Somebody who shares the descriptor made it so; the thread alone may wait.
                select.select([], [self._fd], [], 1.0)
            except OSError:
                return  # The reader is gone, or the disk is full: nobody is left to be told.
