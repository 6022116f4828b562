"""What the disk tier counts.

Owns: the counters and the read rate. Does not own: who reports them (``kv.store``). Next:
``tier.py`` hands out copies.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

_SMOOTHING = 0.05
"""Weight of the newest read or group in its rate."""


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Counters since start."""

    written: int = 0
    """Blocks written, those carried over not counted."""
    read: int = 0
    """Blocks read and found sound."""
    rejected: int = 0
    """Files and records that were torn, corrupt, foreign or gone."""
    failures: int = 0
    """Blocks that the disk refused."""
    evictions: int = 0
    """Blocks that left with their segment."""
    carried: int = 0
    """Hot blocks that were copied before their segment left."""
    written_bytes: int = 0
    read_bytes: int = 0
    read_bytes_per_second: float = 0.0
    """Of the latest reads, checksums included; 0: nothing read yet."""
    write_bytes_per_second: float = 0.0
    """Of the latest groups; 0: nothing written yet."""


class Counters:
    """The numbers behind DiskStats; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = DiskStats()
        self._read = _Rate()
        self._write = _Rate()

    def snapshot(self) -> DiskStats:
        """The counters now."""
        return self._stats

    def count(self, **more: int) -> None:
        """Add to counters by their names in DiskStats."""
        with self._lock:
            sums = {name: getattr(self._stats, name) + add for name, add in more.items()}
            self._stats = replace(self._stats, **sums)

    def count_read(self, num_bytes: int, seconds: float) -> None:
        """A block was read and verified in so much time."""
        self.count(read=1, read_bytes=num_bytes)
        with self._lock:
            rate = self._read.add(num_bytes, seconds)
            self._stats = replace(self._stats, read_bytes_per_second=rate)

    def time_write(self, num_bytes: int, seconds: float) -> None:
        """A group was written in so much time, evictions included."""
        with self._lock:
            rate = self._write.add(num_bytes, seconds)
            self._stats = replace(self._stats, write_bytes_per_second=rate)


class _Rate:
    """Bytes over seconds, the newest weighing most."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0

    def add(self, num_bytes: int, seconds: float) -> float:
        self._bytes += _SMOOTHING * (num_bytes - self._bytes)
        self._seconds += _SMOOTHING * (seconds - self._seconds)
        return self._bytes / self._seconds if self._seconds > 0 else 0.0
