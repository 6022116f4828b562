"""The disk tier's log: appends blocks at its tail and evicts whole segments at its head.

Owns: opening the folder, and room (limit, reserve, eviction, carrying hot blocks over). Runs on the
writer's thread alone. Does not own: when to write (``writer.py``), the segment being written
(``tail.py``), bytes (``format.py``). Next: ``reader.py`` finds blocks in the index.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from terrace_runtime.kv.disk import format as layout
from terrace_runtime.kv.disk.recovery import recover
from terrace_runtime.kv.disk.tail import NewBlock, Tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.kv.disk.budget import Budget
    from terrace_runtime.kv.disk.format import Block
    from terrace_runtime.kv.disk.index import Index, Segment
    from terrace_runtime.kv.disk.stats import Counters
    from terrace_runtime.kv.disk.volume import Volume

_LOG = logging.getLogger(__name__)


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
        self._tail: Tail | None = None
        self._scratch = np.empty(0, np.uint8)

    def open(self) -> Tail:
        """Lock the folder and find what is in it; raises OSError, and may be tried again."""
        self._volume.open()
        try:
            self._budget = self._budget.within(self._volume.space()[1])
            last_serial, num_rejected = recover(
                self._volume, self._index, self._budget, self._fingerprint
            )
            self._counters.count(rejected=num_rejected)
            self._shrink()
        except OSError:
            self._index.clear()
            self._volume.close()
            raise
        self._tail = Tail(
            self._volume,
            self._index,
            self._budget,
            self._fingerprint,
            self._counters,
            last_serial + 1,
        )
        with contextlib.suppress(OSError):
            self._tail.resume()
        return self._tail

    def append(self, blocks: Sequence[NewBlock]) -> None:
        """Write ``blocks`` and index each; raises OSError when the rest could not be written."""
        tail = self._tail or self.open()
        at = 0
        while at < len(blocks):
            ceiling_bytes = self._make_room(tail)
            count = tail.append(blocks[at:], ceiling_bytes)
            at += count
            self._counters.count(written=count, written_bytes=count * self._budget.block_bytes)

    def close(self) -> None:
        """Close the segment being written."""
        if self._tail is not None:
            self._tail.close()

    # Room -----------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """The limit may be lower than when these segments were written."""
        while self._index.used_bytes > self._budget.limit_bytes:
            victim = self._index.next_victim()
            assert victim is not None
            self._remove(victim)

    def _make_room(self, tail: Tail) -> int:
        """Evict until a record, in a new segment if need be, fits; returns what may be used."""
        needed_bytes = self._budget.charge(1)
        while True:
            used_bytes = self._index.used_bytes
            allowance = self._budget.allowance(used_bytes, *self._volume.space())
            if used_bytes + needed_bytes <= allowance:
                return allowance
            # Nothing is evicted where even all of it would not make room.
            victim = self._choose_victim(tail) if needed_bytes <= allowance else None
            if victim is None:
                raise OSError(errno.ENOSPC, "no room for one KV block within maxDisk and the disk")
            self._carry_over(victim, tail)
            self._remove(victim)

    def _choose_victim(self, tail: Tail) -> Segment | None:
        victim = self._index.next_victim(keep=tail.segment)
        if victim is None and tail.segment is not None:
            tail.close()
            victim = self._index.next_victim()
        return victim

    def _carry_over(self, victim: Segment, tail: Tail) -> None:
        """Copy the hottest blocks of ``victim`` to the tail, within the limit."""
        for key, place in self._index.hot(victim, self._budget.carry_slots):
            block = self._read(victim, place.slot, key)
            if block is None:
                self._counters.count(rejected=int(self._index.drop(key, place)))
                continue
            try:
                tail.append([NewBlock(key, block, place.heat // 2)], self._budget.limit_bytes)
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
