"""What a child process writes to its stderr, as lines of our log.

Owns: the pipe, the thread that always reads it, the bound on words that are no log lines. Does not
own: the child. Its own log lines pass as they are; anything else (llama.cpp's last words before an
abort, a library's printf, the interpreter's own) becomes a line with the words as its event. The
pipe is always read, whatever our own stderr does, so a child never waits for a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from terrace_runtime.logs.lines import MAX_LINE_BYTES, timestamp
from terrace_runtime.logs.rate import RateGate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_READ_BYTES: Final = 64 * 1024
_BURST, _PER_SECOND = 200, 10.0
_LAST_LINES, _LAST_CHARS = 3, 300


class ChildLog:
    """One child's stderr."""

    def __init__(self, component: str, put: Callable[[dict[str, Any]], None]) -> None:
        """``put`` takes the fields of each line, from a thread of our own."""
        self._component = component
        self._put = put
        self._gate = RateGate(time.monotonic, _BURST, _PER_SECOND)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def pipe(self) -> Iterator[int]:
        """A descriptor to start the child with; ours is closed at the end of the block."""
        ours, theirs = os.pipe()
        self._thread = threading.Thread(
            target=self._read, args=(ours,), name=f"{self._component} log", daemon=True
        )
        self._thread.start()
        try:
            yield theirs
        finally:
            os.close(theirs)

    @property
    def last_words(self) -> str:
        """The last lines that were no log lines: why it died, where a library said so."""
        return "; ".join(self._last)

    def join(self, timeout_s: float) -> None:
        """Wait for the last line of a child that ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _read(self, fd: int) -> None:
        rest = b""
        with open(fd, "rb", buffering=0) as stream:
            while data := stream.read(_READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line)
                # A line without an end is cut where ours would be.
                if len(rest) > MAX_LINE_BYTES:
                    self._take(rest)
                    rest = b""
        self._take(rest)

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return
        fields = _own_line(text)
        if fields is None:
            self._last.append(text[:_LAST_CHARS])
            if not self._gate.admits():
                return
            fields = self._words(text)
            if held_back := self._gate.take_held_back():
                fields["held_back"] = held_back
        self._put(fields)

    def _words(self, text: str) -> dict[str, Any]:
        return {
            "ts": timestamp(time.time()),
            "level": "warning",
            "component": self._component,
            "logger": "stderr",
            "event": text[: MAX_LINE_BYTES // 8],
        }


def _own_line(text: str) -> dict[str, Any] | None:
    if not text.startswith('{"ts": '):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
