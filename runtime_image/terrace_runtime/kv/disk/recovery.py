"""Rebuilds the index from what lies in the folder, and trusts none of it.

Owns: which files are segments of ours, and the keys in them: from the footer of a closed segment,
else from its record heads. Blocks are not read: their checksums are verified when they are wanted.
Does not own: what happens to old segments (``segments.py``). Next: ``reader.py`` reads blocks.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from terrace_runtime.kv.disk import format as layout
from terrace_runtime.kv.disk.budget import MAX_SEGMENT_BYTES, PAGE_BYTES
from terrace_runtime.kv.disk.index import Segment

if TYPE_CHECKING:
    from terrace_runtime.kv.disk.budget import Budget
    from terrace_runtime.kv.disk.index import Index
    from terrace_runtime.kv.disk.volume import Volume

_LOG = logging.getLogger(__name__)
Entries = list[tuple[bytes, int]]
"""Key and heat of each record; an empty key where the record cannot be read."""


def recover(volume: Volume, index: Index, budget: Budget, fingerprint: bytes) -> tuple[int, int]:
    """Fill ``index``; returns the last serial number and how many files and records were refused.

    Files with a segment's name that are none are removed; links, folders and the like stay.
    """
    serials, num_rejected = volume.serials()
    last_serial = 0
    for serial in serials:
        try:
            found = _read_segment(volume, serial, budget, fingerprint)
            if found is None:
                volume.remove(serial)
        except OSError as error:
            _LOG.warning("KV segment %012x cannot be used: %s", serial, error)
            # It takes room as long as it is there, and is the first to go when room is wanted.
            found = Segment(serial, 0, _pages(volume.size_of(serial)), is_ours=False), []
            num_rejected += 1
        if found is None:
            num_rejected += 1
            continue
        segment, entries = found
        index.add_segment(segment)
        last_serial = max(last_serial, serial if segment.seed else 0)
        for key, heat in entries:
            num_rejected += not key
            index.add(segment, key, heat)
    return last_serial, num_rejected


def _read_segment(
    volume: Volume, serial: int, budget: Budget, fingerprint: bytes
) -> tuple[Segment, Entries] | None:
    """A segment and its records, or None for a file that is no segment or holds nothing."""
    fd = volume.open_segment(serial)
    try:
        file_bytes = volume.size(fd)
        raw = bytearray(layout.HEAD_BYTES)
        largest = max(MAX_SEGMENT_BYTES, budget.charge(1))
        if file_bytes > largest or not volume.read(fd, [raw], 0):
            return None
        head = layout.decode_head(bytes(raw))
        if head is None or head.serial != serial:
            return None
        is_ours = (head.fingerprint, head.block_bytes) == (fingerprint, budget.block_bytes)
        segment = Segment(serial, head.seed, _pages(file_bytes), is_ours=is_ours)
        if not is_ours:
            return segment, []
        entries = _read_footer(volume, fd, head, file_bytes) or _scan(volume, fd, head, file_bytes)
        if not any(key for key, _ in entries):
            return None
        segment.can_grow = all(key for key, _ in entries)
        segment.charged_bytes = max(segment.charged_bytes, budget.charge(len(entries)))
        return segment, entries
    finally:
        os.close(fd)


def _pages(num_bytes: int) -> int:
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def _read_footer(volume: Volume, fd: int, head: layout.Head, file_bytes: int) -> Entries | None:
    raw = bytearray(layout.TRAILER_BYTES)
    at = file_bytes - layout.TRAILER_BYTES
    if at < layout.HEAD_BYTES or not volume.read(fd, [raw], at):
        return None
    count = layout.count_records(head.seed, bytes(raw), file_bytes, head.block_bytes)
    if not count:
        return None
    # The count explains the file's size, so these bytes are in the file.
    footer = bytearray(layout.footer_bytes(count))
    if not volume.read(fd, [footer], file_bytes - len(footer)):
        return None
    return layout.decode_footer(head.seed, bytes(footer))


def _scan(volume: Volume, fd: int, head: layout.Head, file_bytes: int) -> Entries:
    """Records that are there in whole, by their heads; a torn tail is left out."""
    count = (file_bytes - layout.HEAD_BYTES) // layout.record_bytes(head.block_bytes)
    raw = bytearray(layout.RECORD_HEAD_BYTES)
    entries: Entries = []
    for slot in range(count):
        if not volume.read(fd, [raw], layout.record_offset(slot, head.block_bytes)):
            break
        record = layout.decode_record(head.seed, raw, head.block_bytes)
        entries.append((record.key, record.heat) if record else (b"", 0))
    return entries
