"""Host to disk, behind the engine: which blocks are still to be written.

Owns: the order of writes and the pins of blocks being written. Does not own: files (``disk``). Runs
on the engine's thread; the disk's thread only leaves a note. Next: ``disk/``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.kv import BlockDisk
    from terrace_runtime.kv.host_tier import Entry, HostTier

_RETRY_S = 1.0
"""After the disk refused a block: its queue was full, or it is."""


class WriteBehind:
    """Hands each new block of the host tier to the disk, oldest first, a bounded number at once."""

    def __init__(
        self,
        host: HostTier,
        disk: BlockDisk,
        clock: Callable[[], float],
        on_ready: Callable[[], None],
    ) -> None:
        """``on_ready`` is called from the disk's thread when more can be handed over."""
        self._host = host
        self._disk = disk
        self._clock = clock
        self._on_ready = on_ready
        self._max_writing = max(1, host.max_blocks // 4)
        self._backlog: OrderedDict[bytes, None] = OrderedDict()
        self._writing: dict[bytes, Entry] = {}
        self._notes: deque[tuple[bytes, bool]] = deque()
        self._retry_at = 0.0

    @property
    def num_pending(self) -> int:
        """Blocks that are not written yet."""
        return len(self._backlog) + len(self._writing)

    @property
    def num_writing(self) -> int:
        """Those of them that the disk has in its queue."""
        return len(self._writing)

    def add(self, key: bytes) -> None:
        """A block is new in the host tier."""
        if not self._disk.has(key):
            self._backlog[key] = None
            self._hand_over()

    def discard(self, key: bytes) -> None:
        """It left the host tier unwritten."""
        self._backlog.pop(key, None)

    def poll(self) -> None:
        """Take in what was written and hand over more."""
        has_failed = False
        while self._notes:
            key, is_written = self._notes.popleft()
            if not is_written:
                # A full disk may have room again while the block is still here.
                self._backlog[key] = None
                has_failed = True
            self._host.unpin(self._writing.pop(key))
            self._retry_at = 0.0
        if has_failed:
            self._retry_at = self._clock() + _RETRY_S
        if self._backlog:
            self._hand_over()

    def retry(self) -> None:
        """Ask the disk again at once, however lately it refused."""
        self._retry_at = 0.0
        self._hand_over()

    def _hand_over(self) -> None:
        if self._retry_at and self._clock() < self._retry_at:
            return
        while self._backlog and len(self._writing) < self._max_writing:
            key = next(iter(self._backlog))
            entry = self._host.find(key)
            assert entry is not None, "a block that left is discarded"
            self._host.pin(entry)
            self._writing[key] = entry
            if not self._disk.write(key, self._host.buffer(entry), self._written, entry.num_uses):
                self._host.unpin(self._writing.pop(key))
                self._retry_at = self._clock() + _RETRY_S
                return
            del self._backlog[key]
        self._retry_at = 0.0

    def _written(self, key: bytes, is_written: bool) -> None:  # noqa: FBT001 - the disk's callback
        self._notes.append((key, is_written))
        if self._backlog:
            self._on_ready()
