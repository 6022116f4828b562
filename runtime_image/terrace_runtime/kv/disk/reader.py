"""The thread that reads blocks back, straight into their owners' buffers.

Owns: the queue of reads, reading ahead, open files, and verifying what came. Does not own: which
block lies where (``index.py``). Never waits for the writer. ``done`` is called on this thread, once
per read. Next: ``tier.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.kv.disk import format as layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.kv.disk.format import Block
    from terrace_runtime.kv.disk.index import Index, Place, Segment
    from terrace_runtime.kv.disk.stats import Counters
    from terrace_runtime.kv.disk.volume import Volume
    from terrace_runtime.kv.disk.writer import Done

_LOG = logging.getLogger(__name__)
_MAX_OPEN_FILES = 16
_AHEAD_BYTES = 8 * 1024 * 1024
_MIN_AHEAD = 2
_MAX_AHEAD = 16
"""Reads that the kernel is told of in advance: network disks answer late, but many at once."""
_MAX_MOVES = 3
"""A block that is carried over while it is read is looked up again, so often."""


class Wanted(NamedTuple):
    """A block to read, where it goes, and who wants to know."""

    key: bytes
    into: Block
    done: Done


class Reader:
    """Reads blocks for the engine."""

    def __init__(
        self,
        volume: Volume,
        index: Index,
        counters: Counters,
        block_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._volume = volume
        self._block_bytes = block_bytes
        self._index = index
        self._counters = counters
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[Wanted] = deque()
        self._ahead: deque[Wanted] = deque()
        self._num_ahead = min(max(_AHEAD_BYTES // block_bytes, _MIN_AHEAD), _MAX_AHEAD)
        self._unpaid_s = 0.0
        self._files: OrderedDict[int, int] = OrderedDict()
        self._head = bytearray(layout.RECORD_HEAD_BYTES)
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="kv-reader", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, wanted: Wanted) -> bool:
        """Queue a read; False: the tier is closed. Buffers bound the queue: each read has one."""
        with self._changed:
            if self._is_stopping:
                return False
            self._queue.append(wanted)
            self._changed.notify()
            return True

    def stop(self, timeout_s: float) -> bool:
        """Fail what is queued; False: a read did not end in time."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while wanted := self._next():
            self._serve(wanted)
        while self._files:
            os.close(self._files.popitem()[1])

    def _next(self) -> Wanted | None:
        """The next read, after the kernel was told of those behind it; None: the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ahead or self._queue or self._is_stopping)
            fresh: list[Wanted] = []
            while self._queue and len(self._ahead) + len(fresh) < self._num_ahead:
                fresh.append(self._queue.popleft())
        began = self._clock()
        for wanted in fresh:
            if not self._is_stopping:
                self._advise(wanted.key)
            self._ahead.append(wanted)
        # Asking the kernel may take as long as reading: the next read's rate pays for it.
        self._unpaid_s += self._clock() - began
        return self._ahead.popleft() if self._ahead else None

    def _advise(self, key: bytes) -> None:
        place = self._index.find(key)
        if place is None:
            return
        # The read itself will say what is wrong.
        with contextlib.suppress(OSError):
            at = layout.record_offset(place.slot, self._block_bytes)
            length = layout.record_bytes(self._block_bytes)
            self._volume.will_read(self._file(place.segment), at, length)

    def _serve(self, wanted: Wanted) -> None:
        is_read = False
        try:
            is_read = not self._is_stopping and self._read(wanted)
        except Exception:  # noqa: BLE001 - whatever it is, the owner must hear of it
            _LOG.exception("reading a KV block failed")
        try:
            wanted.done(wanted.key, is_read)
        except Exception:  # noqa: BLE001 - the fault is the owner's, and the thread serves others
            _LOG.exception("the owner of a KV block that was read failed")

    def _read(self, wanted: Wanted) -> bool:
        began = self._clock()
        for _ in range(_MAX_MOVES):
            place = self._index.find(wanted.key)
            if place is None:
                return False
            if self._is_sound(place, wanted):
                seconds = self._clock() - began + self._unpaid_s
                self._unpaid_s = 0.0
                self._counters.count_read(wanted.into.nbytes, seconds)
                return True
            # Unsound where it still should be: it is lost. Elsewhere by now: look again.
            if self._index.drop(wanted.key, place):
                self._counters.count(rejected=int(not place.segment.is_leaving))
                return False
        return False

    def _is_sound(self, place: Place, wanted: Wanted) -> bool:
        segment = place.segment
        try:
            fd = self._file(segment)
            at = layout.record_offset(place.slot, self._block_bytes)
            is_whole = self._volume.read(fd, [self._head, wanted.into.data], at)
        except FileNotFoundError:
            if not segment.is_leaving:
                _LOG.warning("KV segment %012x vanished", segment.serial)
                self._counters.count(rejected=self._index.forget(segment))
            return False
        except OSError as error:
            _LOG.warning("KV segment %012x cannot be read: %s", segment.serial, error)
            return False
        return is_whole and layout.is_sound(segment.seed, wanted.key, self._head, wanted.into)

    def _file(self, segment: Segment) -> int:
        """The segment's file, one of the last few used."""
        fd = self._files.pop(segment.serial, -1)
        if fd < 0:
            fd = self._volume.open_segment(segment.serial)
        self._files[segment.serial] = fd
        if len(self._files) > _MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return fd
