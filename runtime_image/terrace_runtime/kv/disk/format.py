"""How KV blocks lie in a segment file: bytes <-> values, and nothing is believed.

Owns: the layout below, its sizes and checksums. Does not own: files (``volume.py``). Pure: no call
here raises on foreign bytes, and no length that was read is ever used to allocate or to seek.

    head (128 bytes)  record 0  record 1 ...  [footer, when the segment was closed]
    record = record head (56 bytes) + block (block_bytes, the same for all of a segment)
    footer = one entry (36 bytes) per record + trailer (24 bytes)

Checksums are CRC-32: they find torn and rotten data, not forgeries, and need not: the files are
mode 0600 and our own. Those of records and footer begin with the segment's own checksum, so that a
record of another file is never taken. Integers are little-endian. Next: ``recovery.py``.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Block = NDArray[np.uint8]
    Data = bytes | bytearray | memoryview

VERSION = 1
KEY_BYTES = 32
HEAD_BYTES = 128
RECORD_HEAD_BYTES = 56
ENTRY_BYTES = 36
TRAILER_BYTES = 24
MAX_HEAT = 255

_HEAD = struct.Struct("<8sIIQQ32s60xI")
_RECORD = struct.Struct("<4sI32sQII")
_ENTRY = struct.Struct("<32sI")
_TRAILER = struct.Struct("<8sQII")
_HEAD_MAGIC = b"TRRCKVS\n"
_RECORD_MAGIC = b"TKVR"
_FOOTER_MAGIC = b"TRRCKVF\n"
_CRC_BYTES = 4
assert _HEAD.size == HEAD_BYTES
assert _RECORD.size == RECORD_HEAD_BYTES
assert _ENTRY.size == ENTRY_BYTES
assert _TRAILER.size == TRAILER_BYTES


@dataclass(frozen=True, slots=True)
class Head:
    """What a segment says of itself."""

    serial: int
    block_bytes: int
    fingerprint: bytes
    """SHA-256 of what makes blocks useful: model, build, KV types."""
    seed: int
    """The head's own checksum, with which those of its records begin."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record's head: whose block follows, and the checksum that it must have."""

    key: bytes
    heat: int
    checksum: int


def record_bytes(block_bytes: int) -> int:
    """Bytes of one record."""
    return RECORD_HEAD_BYTES + block_bytes


def record_offset(slot: int, block_bytes: int) -> int:
    """Where record number ``slot`` begins."""
    return HEAD_BYTES + slot * record_bytes(block_bytes)


def footer_bytes(num_records: int) -> int:
    """Bytes of the footer of a segment of so many records."""
    return num_records * ENTRY_BYTES + TRAILER_BYTES


def closed_bytes(num_records: int, block_bytes: int) -> int:
    """Bytes of a closed segment of so many records."""
    return record_offset(num_records, block_bytes) + footer_bytes(num_records)


def checksum(data: Data, seed: int = 0) -> int:
    """CRC-32 of ``data``; lets other threads run meanwhile."""
    return zlib.crc32(data, seed)


def fingerprint_digest(fingerprint: bytes) -> bytes:
    """A fingerprint of any length, as the 32 bytes that a head holds."""
    return hashlib.sha256(fingerprint).digest()


def encode_head(serial: int, block_bytes: int, fingerprint: bytes) -> bytes:
    """The first bytes of a segment; ``fingerprint`` is 32 bytes."""
    plain = _HEAD.pack(_HEAD_MAGIC, VERSION, HEAD_BYTES, serial, block_bytes, fingerprint, 0)
    body = plain[:-_CRC_BYTES]
    return body + struct.pack("<I", checksum(body))


def decode_head(data: bytes) -> Head | None:
    """The head, or None for anything that this version did not write."""
    if len(data) != HEAD_BYTES:
        return None
    magic, version, head_bytes, serial, block_bytes, fingerprint, seed = _HEAD.unpack(data)
    is_known = (magic, version, head_bytes) == (_HEAD_MAGIC, VERSION, HEAD_BYTES)
    if not is_known or checksum(data[:-_CRC_BYTES]) != seed:
        return None
    return Head(serial, block_bytes, fingerprint, seed)


def head_seed(head: bytes) -> int:
    """The seed of a head that we encoded."""
    (seed,) = struct.unpack("<I", head[-_CRC_BYTES:])
    assert isinstance(seed, int)
    return seed


def encode_record(seed: int, key: bytes, block: Block, heat: int) -> bytes:
    """The head of ``block``'s record in the segment of ``seed``."""
    heat = min(max(heat, 0), MAX_HEAT)
    plain = _RECORD.pack(_RECORD_MAGIC, heat, key, block.nbytes, checksum(block.data), 0)
    body = plain[:-_CRC_BYTES]
    return body + struct.pack("<I", checksum(body, seed))


def decode_record(seed: int, data: Data, block_bytes: int) -> Record | None:
    """A record's head, or None: torn, of another segment, or of another block size."""
    head = bytes(data)
    if len(head) != RECORD_HEAD_BYTES:
        return None
    magic, heat, key, length, block_checksum, own = _RECORD.unpack(head)
    if magic != _RECORD_MAGIC or length != block_bytes:
        return None
    if checksum(head[:-_CRC_BYTES], seed) != own:
        return None
    return Record(key, min(heat, MAX_HEAT), block_checksum)


def is_sound(seed: int, key: bytes, head: Data, block: Block) -> bool:
    """``head`` and ``block``, as read from one record, are ``key``'s and whole."""
    record = decode_record(seed, head, block.nbytes)
    return record is not None and record.key == key and record.checksum == checksum(block.data)


def encode_footer(seed: int, entries: Sequence[tuple[bytes, int]]) -> bytes:
    """Key and heat of every record, in order."""
    table = b"".join(_ENTRY.pack(key, min(max(heat, 0), MAX_HEAT)) for key, heat in entries)
    body = _TRAILER.pack(_FOOTER_MAGIC, len(entries), checksum(table, seed), 0)[:-_CRC_BYTES]
    return table + body + struct.pack("<I", checksum(body, seed))


def count_records(seed: int, trailer: bytes, file_bytes: int, block_bytes: int) -> int | None:
    """Records of a closed segment by its last 24 bytes, or None: it has no sound trailer.

    The count must explain the file's size to the byte, so a hostile one cannot pass.
    """
    if len(trailer) != TRAILER_BYTES:
        return None
    magic, count, _, own = _TRAILER.unpack(trailer)
    if magic != _FOOTER_MAGIC or checksum(trailer[:-_CRC_BYTES], seed) != own:
        return None
    return count if closed_bytes(count, block_bytes) == file_bytes else None


def decode_footer(seed: int, footer: bytes) -> list[tuple[bytes, int]] | None:
    """Key and heat of every record, or None for a torn footer."""
    table, trailer = footer[:-TRAILER_BYTES], footer[-TRAILER_BYTES:]
    if len(trailer) != TRAILER_BYTES or len(table) % ENTRY_BYTES:
        return None
    if _TRAILER.unpack(trailer)[2] != checksum(table, seed):
        return None
    return [(key, min(heat, MAX_HEAT)) for key, heat in _ENTRY.iter_unpack(table)]
