"""The segment being written: begun, appended to in groups, closed with a footer.

Owns: one open file and its end. Runs on the writer's thread alone. Does not own: making room
(``segments.py``). What a write needs is charged to the segment before its bytes are written, and
never beyond the ceiling that the caller gives: that is how the limit holds at every moment. Next:
``index.py`` keeps what was written.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.kv.disk import format as layout
from terrace_runtime.kv.disk.index import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.kv.disk.budget import Budget
    from terrace_runtime.kv.disk.format import Block, Data
    from terrace_runtime.kv.disk.index import Index
    from terrace_runtime.kv.disk.stats import Counters
    from terrace_runtime.kv.disk.volume import Volume

_LOG = logging.getLogger(__name__)
_MAX_TAKEN_NAMES = 1000


class NewBlock(NamedTuple):
    """A block on its way to the disk."""

    key: bytes
    block: Block
    heat: int


class Tail:
    """The end of the log."""

    def __init__(
        self,
        volume: Volume,
        index: Index,
        budget: Budget,
        fingerprint: bytes,
        counters: Counters,
        next_serial: int,
    ) -> None:
        """``fingerprint`` is 32 bytes; the names from ``next_serial`` on should be free."""
        self._volume = volume
        self._index = index
        self._budget = budget
        self._fingerprint = fingerprint
        self._counters = counters
        self._next_serial = next_serial
        self._segment: Segment | None = None
        self._fd = -1

    @property
    def segment(self) -> Segment | None:
        """The segment that is open, if one is."""
        return self._segment

    def resume(self) -> None:
        """Go on with the newest segment if it has room, so that restarts do not leave stubs."""
        segment = self._index.newest()
        if segment is None or not (segment.is_ours and segment.can_grow):
            return
        if len(segment.keys) >= self._budget.slots:
            return
        self._fd = self._volume.open_segment(segment.serial, writable=True)
        self._segment = segment
        try:
            self._volume.truncate(self._fd, self._end(segment))
        except OSError:
            self._leave()
            raise
        self._index.charge(segment, self._budget.charge(len(segment.keys)))

    def append(self, blocks: Sequence[NewBlock], ceiling_bytes: int) -> int:
        """Write as many of ``blocks`` as the segment and ``ceiling_bytes`` allow; at least one.

        Raises OSError when not one of them was written.
        """
        segment = self._writable(ceiling_bytes)
        before = len(segment.keys)
        room_bytes = ceiling_bytes - self._index.used_bytes + segment.charged_bytes
        count = min(len(blocks), self._budget.slots - before)
        while count and self._budget.charge(before + count) > room_bytes:
            count -= 1
        if not count:
            raise OSError(errno.ENOSPC, "no room below maxDisk")
        buffers: list[Data] = []
        for key, block, heat in blocks[:count]:
            buffers += (layout.encode_record(segment.seed, key, block, heat), block.data)
        self._write(segment, buffers, before + count)
        for key, _, heat in blocks[:count]:
            self._index.add(segment, key, heat)
        return count

    def close(self) -> None:
        """Write the footer and bring the segment to the disk; without one it is scanned later."""
        segment = self._segment
        if segment is None:
            return
        try:
            footer = layout.encode_footer(segment.seed, self._index.heats(segment))
            self._volume.write(self._fd, [footer], self._end(segment))
            self._volume.settle(self._fd)
        except OSError as error:
            _LOG.warning("closing KV segment %012x failed: %s", segment.serial, error)
            self._counters.count(failures=1)
            with contextlib.suppress(OSError):
                self._volume.truncate(self._fd, self._end(segment))
        self._leave()

    def _writable(self, ceiling_bytes: int) -> Segment:
        """The open segment, or a new one when it is full or lost its file."""
        segment = self._segment
        if segment is not None and not (segment.is_gone or self._volume.is_linked(self._fd)):
            self._index.forget(segment)
        if segment is not None and segment.is_gone:
            self._leave()
        elif segment is not None and len(segment.keys) >= self._budget.slots:
            self.close()
        return self._segment or self._begin(ceiling_bytes)

    def _begin(self, ceiling_bytes: int) -> Segment:
        if self._index.used_bytes + self._budget.charge(1) > ceiling_bytes:
            raise OSError(errno.ENOSPC, "no room below maxDisk")
        serial, self._fd = self._create()
        head = layout.encode_head(serial, self._budget.block_bytes, self._fingerprint)
        segment = Segment(serial, layout.head_seed(head), self._budget.charge(0))
        self._index.add_segment(segment)
        self._segment = segment
        try:
            self._volume.write(self._fd, [head], 0)
        except OSError:
            self._leave()
            raise
        return segment

    def _create(self) -> tuple[int, int]:
        """A new file under the next free name: others may have put something under a few."""
        for _ in range(_MAX_TAKEN_NAMES):
            serial, self._next_serial = self._next_serial, self._next_serial + 1
            with contextlib.suppress(FileExistsError):
                return serial, self._volume.create(serial)
        raise OSError(errno.EEXIST, "files with the names of new KV segments are in the way")

    def _write(self, segment: Segment, buffers: list[Data], num_records: int) -> None:
        """One call for the whole group; what it left undone is cut off again."""
        end = self._end(segment)
        charged_bytes = segment.charged_bytes
        self._index.charge(segment, self._budget.charge(num_records))
        try:
            self._volume.write(self._fd, buffers, end)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._volume.truncate(self._fd, end)
                self._index.charge(segment, charged_bytes)
            # A full disk says nothing against this file; anything else may be the file's fault.
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                self._leave()
            raise

    def _end(self, segment: Segment) -> int:
        return layout.record_offset(len(segment.keys), self._budget.block_bytes)

    def _leave(self) -> None:
        """Let go of the file; one without a block is removed, at the latest when room is wanted."""
        segment, self._segment = self._segment, None
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)
        if segment is not None and not segment.keys and not segment.is_gone:
            with contextlib.suppress(OSError):
                self._volume.remove(segment.serial)
                self._index.forget(segment)
