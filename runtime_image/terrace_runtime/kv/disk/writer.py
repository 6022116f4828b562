"""The thread that spills: takes what is queued, writes it as a group, tells each block's owner.

Owns: the queue, groups, and staying away from a disk that refused (the back-off). Does not own:
where blocks go (``segments.py``). ``done`` is called on this thread, once per accepted block, also
for those that a full disk or ``stop`` left unwritten. Next: ``tier.py``.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from terrace_runtime.kv.disk.index import Index
    from terrace_runtime.kv.disk.segments import SegmentLog
    from terrace_runtime.kv.disk.stats import Counters
    from terrace_runtime.kv.disk.tail import NewBlock

    Done = Callable[[bytes, bool], None]

_LOG = logging.getLogger(__name__)
MAX_QUEUED = 1024
"""Blocks waiting to be written; more are refused."""
MAX_GROUP_BYTES = 16 * 1024 * 1024
MAX_GROUP_BLOCKS = 64
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LAST_WAIT_S = 1.0
"""For the write in flight, after those behind it were given back."""


class Spill(NamedTuple):
    """A block to write, and who wants to know."""

    new: NewBlock
    done: Done


class Writer:
    """Writes blocks behind the engine."""

    def __init__(
        self, log: SegmentLog, index: Index, counters: Counters, clock: Callable[[], float]
    ) -> None:
        self._log = log
        self._index = index
        self._counters = counters
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[Spill] = deque()
        self._num_in_flight = 0
        self._is_stopping = False
        self._pause_s = 0.0
        self._paused_until = 0.0
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="kv-writer", daemon=True)

    @property
    def problem(self) -> str:
        """Why nothing is written for now; empty: it is."""
        return self._problem

    def start(self) -> None:
        """Open the folder, here and now, and begin."""
        try:
            self._log.open()
        except OSError as error:
            self._pause(error)
        self._thread.start()

    def add(self, spill: Spill) -> bool:
        """Queue a block; False: the queue is full, the disk is paused, or the tier is closed."""
        with self._changed:
            is_paused = bool(self._problem) and self._clock() < self._paused_until
            if is_paused or self._is_stopping or len(self._queue) >= MAX_QUEUED:
                return False
            self._queue.append(spill)
            self._changed.notify_all()
            return True

    def flush(self, timeout_s: float) -> None:
        """Wait until nothing is queued or being written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._num_in_flight), timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Write what is queued if the time allows; False: a write did not end in time."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._tell(self._take_all())
            self._thread.join(min(timeout_s, _LAST_WAIT_S))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while group := self._next_group():
            self._write(group)
            with self._changed:
                self._num_in_flight = 0
                self._changed.notify_all()
        self._log.close()

    def _next_group(self) -> list[Spill]:
        """What is queued, up to a group; empty: the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_stopping)
            group: list[Spill] = []
            num_bytes = 0
            while self._queue and len(group) < MAX_GROUP_BLOCKS and num_bytes < MAX_GROUP_BYTES:
                group.append(self._queue.popleft())
                num_bytes += group[-1].new.block.nbytes
            self._num_in_flight = len(group)
            return group

    def _write(self, group: list[Spill]) -> None:
        """Blocks are addressed by their content, so one that is there already stays as it is."""
        fresh = {spill.new.key: spill.new for spill in group if spill.new.key not in self._index}
        began = self._clock()
        try:
            self._log.append(list(fresh.values()))
        except OSError as error:
            self._pause(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the owners must hear of it
            _LOG.exception("spilling KV blocks failed")
            self._pause(OSError(str(error)))
        else:
            self._problem, self._pause_s = "", 0.0
            if fresh:
                num_bytes = sum(new.block.nbytes for new in fresh.values())
                self._counters.time_write(num_bytes, self._clock() - began)
        refused = self._take_all() if self._problem else []
        if self._problem:
            num_lost = sum(key not in self._index for key in fresh)
            self._counters.count(failures=num_lost + len(refused))
        self._tell(group)
        self._tell(refused)

    def _pause(self, error: OSError) -> None:
        """Leave a disk alone that refused; twice as long each time, up to a minute."""
        pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        if not self._problem:
            _LOG.warning("KV blocks are not written to disk for now: %s", error)
        with self._changed:
            self._pause_s = pause_s
            self._paused_until = self._clock() + pause_s
            self._problem = str(error)

    def _take_all(self) -> list[Spill]:
        with self._changed:
            taken = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        return taken

    def _tell(self, spills: Iterable[Spill]) -> None:
        for spill in spills:
            try:
                spill.done(spill.new.key, spill.new.key in self._index)
            except Exception:  # noqa: BLE001 - the fault is the owner's; the thread serves others
                _LOG.exception("the owner of a spilled block failed")
