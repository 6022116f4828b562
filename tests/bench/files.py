"""The page cache and the device behind files: what a restart finds and how fast that can be read.

Owns: writing files out, dropping them from the page cache, and reading them from the device alone.
Does not own: who reads them otherwise (``cases/tiers.py``).
"""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_READ_BYTES = 4 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)


def drop_from_page_cache(paths: Sequence[Path]) -> None:
    """Write the files out and let go of their pages; the next read is the device's."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def device_read_rate(paths: Sequence[Path]) -> float:
    """Bytes per second of reading the files in order past the page cache; 0: it cannot be told."""
    # A direct read wants memory that begins at a page.
    buffer = mmap.mmap(-1, _READ_BYTES)
    total, started = 0, time.perf_counter()
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | _DIRECT)
        except OSError:  # A file system in memory has no device behind it.
            return 0.0
        try:
            while count := os.readv(fd, [buffer]):
                total += count
        finally:
            os.close(fd)
    return total / (time.perf_counter() - started) if total else 0.0
