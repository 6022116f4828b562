"""How many bytes the disk tier may use, and how they are divided. Pure.

Owns: the size of segments, the reserve of the volume, the room for blocks that are carried over.
Does not own: counting what is used (``index.py``). Next: ``segments.py`` keeps to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrace_runtime.kv.disk import format as layout

MIB = 1024 * 1024
MIN_SEGMENT_BYTES = 8 * MIB
MAX_SEGMENT_BYTES = 256 * MIB
PAGE_BYTES = 4096
"""File systems give whole pages, so whole pages are counted."""
MAX_BLOCKS = 1_000_000
"""The index holds about 250 bytes of memory per block: at most 250 MB."""
_SEGMENTS = 64
_FEW_SEGMENTS = 8
_RESERVE_SHARE = 64
_MAX_RESERVE_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True)
class Budget:
    """What follows from a limit and a block's size."""

    limit_bytes: int
    """Never exceeded, also not while blocks are carried over."""
    block_bytes: int
    slots: int
    """Records of a full segment."""
    carry_slots: int
    """Most blocks carried over from a segment that is evicted."""
    headroom_bytes: int
    """Kept free below the limit for them."""

    def within(self, volume_bytes: int) -> Budget:
        """The same on a volume that may be smaller than the limit."""
        return make_budget(min(self.limit_bytes, volume_bytes), self.block_bytes)

    def charge(self, num_records: int) -> int:
        """Bytes that a segment of so many records counts, its future footer included."""
        size = layout.closed_bytes(num_records, self.block_bytes)
        return -(-size // PAGE_BYTES) * PAGE_BYTES

    def allowance(self, used_bytes: int, free_bytes: int, volume_bytes: int) -> int:
        """Bytes that the tier may use before it must evict, on a volume with so much free."""
        reserve = min(volume_bytes // _RESERVE_SHARE, _MAX_RESERVE_BYTES)
        return min(self.limit_bytes, used_bytes + free_bytes - reserve) - self.headroom_bytes


def make_budget(limit_bytes: int, block_bytes: int) -> Budget:
    """A 64th of the limit per segment, 8 to 256 MiB; an 8th of a limit below 64 MiB."""
    record = layout.record_bytes(block_bytes) + layout.ENTRY_BYTES
    limit = min(limit_bytes, MAX_BLOCKS * record)
    wanted = min(max(limit // _SEGMENTS, MIN_SEGMENT_BYTES), MAX_SEGMENT_BYTES)
    wanted = min(wanted, limit // _FEW_SEGMENTS)
    fixed = layout.HEAD_BYTES + layout.TRAILER_BYTES + PAGE_BYTES
    slots = max(1, (wanted - fixed) // record)
    carry_slots = slots // 2
    # The blocks carried over may begin a segment of their own.
    headroom = carry_slots * record + 2 * fixed if carry_slots else 0
    return Budget(limit, block_bytes, slots, carry_slots, headroom)
