"""The disk tier: KV blocks on the pod's volume, behind the engine.

Owns: the port that ``kv.store`` uses, and the life of the two threads behind it. Does not own:
policy above the disk (what to spill, what to restore). Nothing here that the engine's thread calls
waits for a disk, but for opening and closing. Next: ``writer.py`` spills, ``reader.py`` restores.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from terrace_runtime.kv.disk.budget import make_budget
from terrace_runtime.kv.disk.format import KEY_BYTES, fingerprint_digest
from terrace_runtime.kv.disk.index import Index
from terrace_runtime.kv.disk.reader import Reader, Wanted
from terrace_runtime.kv.disk.segments import SegmentLog
from terrace_runtime.kv.disk.stats import Counters, DiskStats
from terrace_runtime.kv.disk.tail import NewBlock
from terrace_runtime.kv.disk.volume import Volume
from terrace_runtime.kv.disk.writer import Spill, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from terrace_runtime.kv.disk.format import Block
    from terrace_runtime.kv.disk.writer import Done

_CLOSE_TIMEOUT_S = 10.0


class DiskTier:
    """Blocks of ``block_bytes`` each in ``folder``, at most ``limit_bytes`` of them.

    Blocks are addressed by their content: a key that is there already is not written again. Those
    of another ``fingerprint`` (any bytes) are never found and leave first. A folder that cannot be
    used (taken by another process, read-only, no folder) makes a tier that holds nothing, says why
    in ``problem`` and tries again with the writes that come later.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        block_bytes: int,
        fingerprint: bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
        volume: Volume | None = None,
    ) -> None:
        """Rebuilds the index from the folder; ``volume`` stands in for it where faults are made."""
        self._limit_bytes = limit_bytes
        self._block_bytes = block_bytes
        self._volume = volume or Volume(folder)
        self._counters = Counters()
        self._index = Index()
        log = SegmentLog(
            self._volume,
            self._index,
            make_budget(limit_bytes, block_bytes),
            fingerprint_digest(fingerprint),
            self._counters,
        )
        self._writer = Writer(log, self._index, self._counters, clock)
        self._reader = Reader(self._volume, self._index, self._counters, block_bytes, clock)
        self._writer.start()
        self._reader.start()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def used_bytes(self) -> int:
        """Bytes of the folder's segments, in whole pages."""
        return self._index.used_bytes

    @property
    def limit_bytes(self) -> int:
        """What was asked for; a small volume or very small blocks end the tier before it."""
        return self._limit_bytes

    @property
    def problem(self) -> str:
        """Why blocks are not written for now; empty: they are."""
        return self._writer.problem

    def stats(self) -> DiskStats:
        """Counters since start."""
        return self._counters.snapshot()

    def has(self, key: bytes) -> bool:
        """A read of ``key`` would find it, unless its bytes turn out to be damaged."""
        return key in self._index

    def write(self, key: bytes, block: Block, done: Done, heat: int = 0) -> bool:
        """Queue a block; False: not now (the queue is full, or the disk refused lately).

        True: ``done(key, is_written)`` follows once, from the writer's thread; until then
        ``block`` must not change. ``heat``: how often the block was used so far.
        """
        assert len(key) == KEY_BYTES
        assert block.nbytes == self._block_bytes
        return self._writer.add(Spill(NewBlock(key, block, heat), done))

    def read(self, key: bytes, into: Block, done: Done) -> None:
        """Queue a read into ``into``; ``done(key, is_read)`` follows once.

        It comes from the reader's thread, or at once after ``close``. True: ``into`` holds the
        very bytes that were written; False: nothing of use. It counts as no use: ``touch`` does.
        """
        assert into.nbytes == self._block_bytes
        if not self._reader.add(Wanted(key, into, done)):
            done(key, False)

    def touch(self, keys: Iterable[bytes]) -> None:
        """These blocks were used again: they outlive the segment that they lie in."""
        self._index.touch(keys)

    def flush(self, timeout_s: float) -> None:
        """Wait until all that is queued is written or refused, or for so long."""
        self._writer.flush(timeout_s)

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Fail the reads that wait, write what is queued if time allows, leave the folder."""
        is_read = self._reader.stop(timeout_s)
        is_written = self._writer.stop(timeout_s)
        # A thread that still hangs in the kernel keeps its files; the process's end closes them.
        if is_read and is_written:
            self._volume.close()
