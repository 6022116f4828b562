"""Appends blocks to segments and evicts whole segments: the disk tier's log.

Owns: the segment being written, room (limit, reserve, eviction, carrying hot blocks over). Runs on
the writer's thread alone. Does not own: when to write (``writer.py``), bytes (``format.py``), files
(``volume.py``). The charge of a segment is taken before its bytes are written, and no charge goes
over the limit, so the limit holds at every moment. Next: ``reader.py`` finds blocks in the index.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from terrace_runtime.kv.disk import format as layout
from terrace_runtime.kv.disk.index import Segment
from terrace_runtime.kv.disk.recovery import recover

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


class SegmentLog:
    """The segments of one folder."""

    def __init__(
        self, volume: Volume, index: Index, budget: Budget, fingerprint: bytes, counters: Counters
    ) -> None:
        """``fingerprint`` is 32 bytes."""
        self._volume = volume
        self._index = index
        self._budget = budget
        self._fingerprint = fingerprint
        self._counters = counters
        self._next_serial = 1
        self._current: Segment | None = None
        self._fd = -1
        self._scratch = np.empty(0, np.uint8)

    @property
    def limit_bytes(self) -> int:
        """The most that the segments will use."""
        return self._budget.limit_bytes

    def open(self) -> None:
        """Lock the folder and find what is in it; raises OSError."""
        self._volume.open()
        try:
            self._budget = self._budget.within(self._volume.space()[1])
            found = recover(self._volume, self._index, self._budget, self._fingerprint)
            self._next_serial, num_rejected = found
            self._counters.count(rejected=num_rejected)
            self._shrink()
        except OSError:
            self._index.clear()
            self._volume.close()
            raise
        with contextlib.suppress(OSError):
            self._resume()

    def append(self, blocks: Sequence[NewBlock]) -> None:
        """Write ``blocks`` and index each; raises OSError when the rest could not be written."""
        if not self._volume.is_open:
            self.open()
        at = 0
        while at < len(blocks):
            ceiling_bytes = self._make_room()
            count = self._put(blocks[at:], ceiling_bytes)
            at += count
            self._counters.count(written=count, written_bytes=count * self._budget.block_bytes)

    def close(self) -> None:
        """Close the segment being written."""
        if self._current is not None:
            self._seal(self._current)

    # Room -----------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """The limit may be lower than when these segments were written."""
        while self._index.used_bytes > self._budget.limit_bytes:
            victim = self._index.next_victim()
            assert victim is not None
            self._remove(victim)

    def _make_room(self) -> int:
        """Evict until a record, in a new segment if need be, fits; returns what may be used."""
        needed_bytes = self._budget.charge(1)
        while True:
            used_bytes = self._index.used_bytes
            allowance = self._budget.allowance(used_bytes, *self._volume.space())
            if used_bytes + needed_bytes <= allowance:
                return allowance
            # Nothing is evicted where even all of it would not make room.
            victim = self._choose_victim() if needed_bytes <= allowance else None
            if victim is None:
                raise OSError(errno.ENOSPC, "no room for one KV block within maxDisk and the disk")
            self._carry_over(victim)
            self._remove(victim)

    def _choose_victim(self) -> Segment | None:
        victim = self._index.next_victim(keep=self._current)
        if victim is None and self._current is not None and self._current.keys:
            victim = self._current
            self._seal(victim)
        return victim

    def _carry_over(self, victim: Segment) -> None:
        """Copy the hottest blocks of ``victim`` into the segment being written."""
        for key, place in self._index.hot(victim, self._budget.carry_slots):
            block = self._read(victim, place.slot, key)
            if block is None:
                self._counters.count(rejected=int(self._index.drop(key, place)))
                continue
            try:
                self._put([NewBlock(key, block, place.heat // 2)], self._budget.limit_bytes)
            except OSError as error:
                # The disk may be full just because the victim is still there.
                _LOG.warning("KV blocks cannot be carried over: %s", error)
                return
            self._counters.count(carried=1)

    def _read(self, segment: Segment, slot: int, key: bytes) -> Block | None:
        block_bytes = self._budget.block_bytes
        if not self._scratch.nbytes:
            self._scratch = np.empty(block_bytes, np.uint8)
        head = bytearray(layout.RECORD_HEAD_BYTES)
        try:
            fd = self._volume.open_segment(segment.serial)
            try:
                at = layout.record_offset(slot, block_bytes)
                is_whole = self._volume.read(fd, [head, self._scratch.data], at)
            finally:
                os.close(fd)
        except OSError as error:
            _LOG.warning("KV segment %012x cannot be read: %s", segment.serial, error)
            return None
        if not is_whole or not layout.is_sound(segment.seed, key, head, self._scratch):
            return None
        return self._scratch

    def _remove(self, victim: Segment) -> None:
        victim.is_leaving = True
        self._volume.remove(victim.serial)
        self._counters.count(evictions=self._index.forget(victim))

    # The segment being written --------------------------------------------------------------------

    def _put(self, blocks: Sequence[NewBlock], ceiling_bytes: int) -> int:
        """Write as many of ``blocks`` as the segment and ``ceiling_bytes`` allow; at least one."""
        segment = self._writable(ceiling_bytes)
        before = len(segment.keys)
        room_bytes = ceiling_bytes - self._index.used_bytes + segment.charged_bytes
        count = min(len(blocks), self._budget.slots - before)
        while count and self._budget.charge(before + count) > room_bytes:
            count -= 1
        if not count:
            raise OSError(errno.ENOSPC, "no room below maxDisk")
        blocks = blocks[:count]
        buffers: list[Data] = []
        for key, block, heat in blocks:
            buffers += (layout.encode_record(segment.seed, key, block, heat), block.data)
        self._write(segment, buffers, before + count)
        for key, _, heat in blocks:
            self._index.add(segment, key, heat)
        return count

    def _write(self, segment: Segment, buffers: list[Data], num_records: int) -> None:
        """One call for the whole group; what it left undone is cut off again."""
        end = layout.record_offset(len(segment.keys), self._budget.block_bytes)
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

    def _writable(self, ceiling_bytes: int) -> Segment:
        """The segment being written, or a new one when it is full or lost its file."""
        current = self._current
        if current is not None and not (current.is_gone or self._volume.is_linked(self._fd)):
            self._index.forget(current)
        if current is not None and current.is_gone:
            self._leave()
        elif current is not None and len(current.keys) >= self._budget.slots:
            self._seal(current)
        return self._current or self._begin(ceiling_bytes)

    def _begin(self, ceiling_bytes: int) -> Segment:
        if self._index.used_bytes + self._budget.charge(1) > ceiling_bytes:
            raise OSError(errno.ENOSPC, "no room below maxDisk")
        serial, fd = self._create()
        head = layout.encode_head(serial, self._budget.block_bytes, self._fingerprint)
        segment = Segment(serial, layout.head_seed(head), self._budget.charge(0))
        try:
            self._volume.write(fd, [head], 0)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                self._volume.remove(serial)
            raise
        self._index.add_segment(segment)
        self._current, self._fd = segment, fd
        return segment

    def _create(self) -> tuple[int, int]:
        """A new file under the next free name: others may have put something under a few."""
        for _ in range(_MAX_TAKEN_NAMES):
            serial, self._next_serial = self._next_serial, self._next_serial + 1
            with contextlib.suppress(FileExistsError):
                return serial, self._volume.create(serial)
        raise OSError(errno.EEXIST, "files with the names of new KV segments are in the way")

    def _resume(self) -> None:
        """Go on with the newest segment if it has room, so that restarts do not leave stubs."""
        segment = self._index.newest()
        if segment is None or not (segment.is_ours and segment.can_grow):
            return
        if len(segment.keys) >= self._budget.slots:
            return
        fd = self._volume.open_segment(segment.serial, writable=True)
        end = layout.record_offset(len(segment.keys), self._budget.block_bytes)
        self._volume.truncate(fd, end)
        self._index.charge(segment, self._budget.charge(len(segment.keys)))
        self._current, self._fd = segment, fd

    def _seal(self, segment: Segment) -> None:
        """Write the footer and bring the segment to the disk; without one it is scanned later."""
        end = layout.record_offset(len(segment.keys), self._budget.block_bytes)
        try:
            footer = layout.encode_footer(segment.seed, self._index.heats(segment))
            self._volume.write(self._fd, [footer], end)
            self._volume.settle(self._fd)
        except OSError as error:
            _LOG.warning("closing KV segment %012x failed: %s", segment.serial, error)
            self._counters.count(failures=1)
            with contextlib.suppress(OSError):
                self._volume.truncate(self._fd, end)
        self._leave()

    def _leave(self) -> None:
        fd, self._fd, self._current = self._fd, -1, None
        with contextlib.suppress(OSError):
            os.close(fd)
