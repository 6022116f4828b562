"""Blocks handed to the engine one by one, some of them still on their way from the disk.

Owns: reads in flight, how far ahead they run, and what a reader keeps pinned. Does not own: which
blocks exist (``store.py``) or eviction (``host_tier.py``). All of it runs on the engine's thread;
the disk's threads only leave a note and wake it. Next: ``blob.py`` joins blocks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.kv import BlockDisk
    from terrace_runtime.kv.host_tier import Entry, HostTier


PATIENCE_S = 10.0
"""A disk that has answered nothing for so long hangs: a network's volume may do so for minutes."""


class Landings:
    """Reads in flight: each lands in a guest of the host tier, pinned until it has landed."""

    def __init__(
        self,
        host: HostTier,
        disk: BlockDisk | None,
        max_ahead: int,
        on_ready: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """``max_ahead``: guests that prefetching may use; what is needed now may use them all.

        ``clock`` gives seconds.
        """
        self._host = host
        self._disk = disk
        self._max_ahead = max_ahead
        self._on_ready = on_ready
        self._notes: deque[tuple[bytes, bool]] = deque()
        self._flying: set[bytes] = set()
        self._clock = clock
        self._moved_at = 0.0
        """When a block landed last, or the first of those in flight was asked for."""
        # Readings with blocks not asked for yet, oldest first.
        self._needed: dict[Reading, None] = {}
        self._prefetches: dict[Reading, None] = {}
        """All that read ahead, oldest first."""
        self._ahead: dict[Reading, None] = {}

    @property
    def is_stalled(self) -> bool:
        """The disk owes blocks and has long given none: whoever waits for it goes on without."""
        return bool(self._flying) and self._clock() - self._moved_at > PATIENCE_S

    def poll(self) -> None:
        """Take in what has landed and start what there is room for now."""
        if not (self._notes or self._needed or self._ahead):
            return
        if self._notes:
            self._moved_at = self._clock()
        while self._notes:
            key, is_good = self._notes.popleft()
            self._flying.remove(key)
            entry = self._host.find(key)
            assert entry is not None, "a block in flight is pinned"
            if is_good:
                entry.is_ready = True
                self._host.unpin(entry)
            else:
                self._host.drop(entry)
        for waiting in (self._needed, self._ahead):
            while waiting and (reading := next(iter(waiting))).advance():
                del waiting[reading]

    def is_gone(self, key: bytes) -> bool:
        """Neither tier has it any more."""
        is_here = self._host.find(key) is not None
        return not is_here and (self._disk is None or not self._disk.has(key))

    def fetch(self, key: bytes, *, is_ahead: bool) -> Entry | None:
        """The entry of a block that is ready or in flight after this; None: no room to land."""
        entry = self._host.find(key)
        if entry is not None:
            # A block that the engine is just filling itself cannot be waited for.
            return entry if entry.is_ready or key in self._flying else None
        if self._disk is None or (is_ahead and self._host.num_guests >= self._max_ahead):
            return None
        entry = self._host.add_guest(key)
        # What is needed now comes before what was read ahead: else who waits for this restore
        # could hold all the room that it needs.
        while entry is None and not is_ahead and self._give_up_newest():
            entry = self._host.add_guest(key)
        if entry is not None:
            if not self._flying:
                self._moved_at = self._clock()
            self._flying.add(key)
            self._disk.read(key, self._host.buffer(entry), self._landed)
        return entry

    def add(self, reading: Reading) -> None:
        """Ask for its blocks, as far as there is room."""
        waiting = self._ahead if reading.is_ahead else self._needed
        if reading.is_ahead:
            self._prefetches[reading] = None
        if waiting or not reading.advance():
            waiting[reading] = None

    def remove(self, reading: Reading) -> None:
        """Ask for no more of its blocks."""
        self._needed.pop(reading, None)
        self._ahead.pop(reading, None)
        self._prefetches.pop(reading, None)

    def _give_up_newest(self) -> bool:
        """Let the newest prefetch go; False: there is none."""
        if not self._prefetches:
            return False
        next(reversed(self._prefetches)).close()
        return True

    def _landed(self, key: bytes, is_good: bool) -> None:  # noqa: FBT001 - the disk's callback
        self._notes.append((key, is_good))
        self._on_ready()


class Reading:
    """A run of blocks for one owner, in order; close it in any case."""

    def __init__(
        self, keys: Sequence[bytes], host: HostTier, landings: Landings, *, is_ahead: bool
    ) -> None:
        """Pins what the host has. ``is_ahead``: only lands what the disk has, as a prefetch."""
        self.num_blocks = len(keys)
        self.is_ahead = is_ahead
        self._keys = keys
        self._host = host
        self._landings = landings
        self._next = 0
        self._num_asked = 0
        self._held: list[Entry | None] = [None] * len(keys)
        if not is_ahead:
            # All at once: the first evictions must not hit what is needed last.
            for index, key in enumerate(keys):
                entry = host.find(key)
                if entry is not None and entry.is_ready:
                    self._hold(index, entry)
        landings.add(self)

    @property
    def is_done(self) -> bool:
        """Every block was taken."""
        return self._next == self.num_blocks

    @property
    def is_failed(self) -> bool:
        """The next block vanished, was corrupt or does not come; what was taken stays good."""
        if self.is_done:
            return False
        entry = self._held[self._next]
        if entry is not None and (entry.is_failed or entry.is_ready):
            return entry.is_failed
        return self._landings.is_stalled

    def take(self) -> tuple[int, NDArray[np.uint8]] | None:
        """(index, bytes) of the next block if it is there now; valid until the next call."""
        if self._next:
            self._release(self._next - 1)
        self._landings.poll()
        if self.is_done:
            return None
        index = self._next
        entry = self._held[index]
        if entry is None or not entry.is_ready:
            return None
        self._next += 1
        return index, self._host.buffer(entry)

    def close(self) -> None:
        """Let go of everything and count what was taken as used; safe to call twice."""
        self._landings.remove(self)
        for index in range(len(self._held)):
            self._release(index)
        if self._next and not self.is_ahead:
            # The last block is of no use without the first, so it must be the first to leave.
            self._host.touch(reversed(self._keys[: self._next]), is_use=True)
        self._held = []
        self._next = self.num_blocks = self._num_asked = 0

    def advance(self) -> bool:
        """Ask for the next blocks; False: there is no room to land another one."""
        while self._num_asked < self.num_blocks:
            index = self._num_asked
            if self.is_ahead and self._landings.is_gone(self._keys[index]):
                self.num_blocks = index
                return True
            if self._held[index] is None:
                entry = self._landings.fetch(self._keys[index], is_ahead=self.is_ahead)
                if entry is None:
                    return False
                if entry.is_guest or not self.is_ahead:
                    self._hold(index, entry)
            self._num_asked += 1
        return True

    def _hold(self, index: int, entry: Entry) -> None:
        self._host.pin(entry)
        self._held[index] = entry

    def _release(self, index: int) -> None:
        entry = self._held[index]
        if entry is not None:
            self._held[index] = None
            self._host.unpin(entry)
