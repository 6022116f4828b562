"""Which block lies where: the disk tier's index, in memory.

Owns: key -> place, the segments and their bytes, heat, and which segment goes first. Does not own:
files. Its methods are atomic and O(1) per block, for any thread. Next: ``segments.py`` fills it,
``reader.py`` asks it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace_runtime.kv.disk.format import MAX_HEAT

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(slots=True, eq=False)
class Segment:
    """One segment file."""

    serial: int
    seed: int
    """Its head's checksum; 0: its head could not be read."""
    charged_bytes: int
    """What it counts against the limit."""
    is_ours: bool = True
    """False: of an old fingerprint; its blocks are not in the index."""
    can_grow: bool = True
    """Its records are all readable, so that more may follow them."""
    is_leaving: bool = False
    """Its file is being removed: that a read fails now is no fault of the disk."""
    is_gone: bool = False
    """No longer in the index."""
    keys: list[bytes] = field(default_factory=list)
    """Key of each record; empty where a record cannot be read."""


@dataclass(slots=True, eq=False)
class Place:
    """Where a block lies; another object after it moved."""

    segment: Segment
    slot: int
    heat: int
    """Uses since it was written; halved when it is carried over."""


class Index:
    """Blocks and segments of the disk tier."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[bytes, Place] = {}
        self._segments: dict[int, Segment] = {}
        self._used_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    @property
    def used_bytes(self) -> int:
        """Bytes of all segments, in whole pages."""
        return self._used_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._places.clear()
            self._segments.clear()
            self._used_bytes = 0

    def add_segment(self, segment: Segment) -> None:
        """Count a segment; its blocks follow by ``add``."""
        with self._lock:
            assert segment.serial not in self._segments
            self._segments[segment.serial] = segment
            self._used_bytes += segment.charged_bytes

    def charge(self, segment: Segment, charged_bytes: int) -> None:
        """The segment grew or shrank."""
        with self._lock:
            if not segment.is_gone:
                self._used_bytes += charged_bytes - segment.charged_bytes
            segment.charged_bytes = charged_bytes

    def add(self, segment: Segment, key: bytes, heat: int) -> None:
        """The segment's next record is ``key``'s; it replaces an older place of it."""
        with self._lock:
            segment.keys.append(key)
            if key and not segment.is_gone:
                slot = len(segment.keys) - 1
                self._places[key] = Place(segment, slot, min(heat, MAX_HEAT))

    def find(self, key: bytes) -> Place | None:
        """Where ``key`` lies now."""
        return self._places.get(key)

    def touch(self, keys: Iterable[bytes]) -> None:
        """These blocks were used again."""
        with self._lock:
            for key in keys:
                place = self._places.get(key)
                if place is not None and place.heat < MAX_HEAT:
                    place.heat += 1

    def drop(self, key: bytes, place: Place) -> bool:
        """Forget a block that could not be read at ``place``; False: it lies elsewhere by now."""
        with self._lock:
            if self._places.get(key) is not place:
                return False
            del self._places[key]
            return True

    def forget(self, segment: Segment) -> int:
        """Forget a segment and the blocks that lie in it; returns how many."""
        with self._lock:
            if segment.is_gone:
                return 0
            segment.is_gone = True
            del self._segments[segment.serial]
            self._used_bytes -= segment.charged_bytes
            lost = [key for key in segment.keys if self._lies_in(key, segment)]
            for key in lost:
                del self._places[key]
            return len(lost)

    def next_victim(self, *, keep: Segment | None = None) -> Segment | None:
        """The segment to evict: of an old fingerprint, else the oldest; never ``keep``."""
        with self._lock:
            victims = [segment for segment in self._segments.values() if segment is not keep]
        return min(victims, key=lambda one: (one.is_ours, one.serial), default=None)

    def newest(self) -> Segment | None:
        """The segment with the highest serial number."""
        with self._lock:
            return max(self._segments.values(), key=lambda one: one.serial, default=None)

    def hot(self, segment: Segment, max_count: int) -> list[tuple[bytes, Place]]:
        """The most used blocks of a segment, hottest first."""
        with self._lock:
            places = [
                (key, self._places[key])
                for key in dict.fromkeys(segment.keys)
                if self._lies_in(key, segment)
            ]
        warm = [(key, place) for key, place in places if place.heat > 0]
        warm.sort(key=lambda item: -item[1].heat)
        return warm[: min(max_count, len(segment.keys) // 2)]

    def heats(self, segment: Segment) -> list[tuple[bytes, int]]:
        """Key and heat of each record, for the footer."""
        with self._lock:
            return [
                (key, self._places[key].heat if self._lies_in(key, segment) else 0)
                for key in segment.keys
            ]

    def _lies_in(self, key: bytes, segment: Segment) -> bool:
        place = self._places.get(key)
        return place is not None and place.segment is segment
