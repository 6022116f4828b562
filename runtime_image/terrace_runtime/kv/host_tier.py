"""Which KV blocks lie in host memory, and which of them leaves first.

Owns: the index over the arena, pins, and the order of eviction. Does not own: the disk, owners or
counters of requests (``store.py``). Everything is O(1) and happens on the engine's thread.

Eviction is segmented LRU (Karedla et al. 1994): a block seen once is cold, one used again is warm,
and the coldest cold block leaves first, so that one long prompt does not wash out what is shared.
Next: ``store.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.kv.arena import Arena

_WARM_SHARE = 0.75
"""Of the blocks, at most so many are kept as warm; the coldest of them turns cold again."""


@dataclass(slots=True)
class Entry:
    """One block in host memory. Guests are on their way from the disk, beyond the tier's limit."""

    key: bytes
    number: int
    """Of its buffer in the arena."""
    is_guest: bool
    is_ready: bool = False
    """Its bytes are there."""
    is_failed: bool = False
    """They will never be: it left the index, and its buffer is another's."""
    num_pins: int = 1
    """Not evicted while this is above 0; it begins pinned by whoever fills it."""
    num_uses: int = 0


class HostTier:
    """At most ``max_blocks`` residents and ``max_guests`` guests in one arena."""

    def __init__(
        self,
        arena: Arena,
        max_blocks: int,
        max_guests: int,
        on_evict: Callable[[bytes], None] = lambda _key: None,
    ) -> None:
        """``arena`` has a buffer for each of both; ``on_evict`` hears the key of each evicted."""
        self.max_blocks = max_blocks
        self.max_guests = max_guests
        self.num_residents = 0
        self.num_guests = 0
        self.num_evictions = 0
        self._arena = arena
        self._on_evict = on_evict
        self._entries: dict[bytes, Entry] = {}
        self._cold: OrderedDict[bytes, Entry] = OrderedDict()
        self._warm: OrderedDict[bytes, Entry] = OrderedDict()

    def find(self, key: bytes) -> Entry | None:
        """The entry of ``key``, ready or being filled."""
        return self._entries.get(key)

    def is_ready(self, key: bytes) -> bool:
        """Its bytes are here."""
        entry = self._entries.get(key)
        return entry is not None and entry.is_ready

    def buffer(self, entry: Entry) -> NDArray[np.uint8]:
        """The bytes of a block; good as long as it is pinned."""
        return self._arena.buffer(entry.number)

    def add(self, key: bytes) -> Entry | None:
        """A buffer to fill for a new block, pinned; None when all there is is pinned."""
        assert key not in self._entries, "this block is here already"
        if not self._make_room():
            return None
        self.num_residents += 1
        return self._new_entry(key, is_guest=False)

    def add_guest(self, key: bytes) -> Entry | None:
        """The same beyond the limit, for a block on its way from the disk."""
        assert key not in self._entries, "this block is here already"
        if self.num_guests == self.max_guests:
            return None
        self.num_guests += 1
        return self._new_entry(key, is_guest=True)

    def drop(self, entry: Entry) -> None:
        """Give up a block that could not be filled; whoever has it pinned sees that it failed."""
        assert not entry.is_ready, "a filled block is evicted, not dropped"
        entry.is_failed = True
        self._remove(entry)

    def pin(self, entry: Entry) -> None:
        """Keep it; every call needs one ``unpin``."""
        if entry.num_pins == 0:
            del self._segment(entry)[entry.key]
        entry.num_pins += 1

    def unpin(self, entry: Entry) -> None:
        """Let go; a guest that nobody needs any more becomes a resident or leaves."""
        assert entry.num_pins > 0, "unpinned more often than pinned"
        entry.num_pins -= 1
        if entry.num_pins or entry.is_failed:
            return
        if entry.is_guest and not self.settle(entry):
            self._remove(entry)
            return
        self._list(entry)

    def settle(self, entry: Entry) -> bool:
        """Make a guest a resident; False: all room is pinned."""
        if not entry.is_guest:
            return True
        if not self._make_room():
            return False
        entry.is_guest = False
        self.num_guests -= 1
        self.num_residents += 1
        return True

    def touch(self, keys: Iterable[bytes], *, is_use: bool) -> None:
        """Make these the hottest, the last of ``keys`` the hottest of all."""
        for key in keys:
            entry = self._entries.get(key)
            if entry is None or not entry.is_ready:
                continue
            if entry.num_pins:
                entry.num_uses += is_use
                continue
            del self._segment(entry)[key]
            entry.num_uses += is_use
            self._list(entry)

    def _list(self, entry: Entry) -> None:
        """Put it at the hot end of its segment; the coldest warm block may turn cold for it."""
        self._segment(entry)[entry.key] = entry
        if len(self._warm) > _WARM_SHARE * self.max_blocks:
            key, coldest = self._warm.popitem(last=False)
            coldest.num_uses = 0
            self._cold[key] = coldest

    def _new_entry(self, key: bytes, *, is_guest: bool) -> Entry:
        entry = self._entries[key] = Entry(key, self._arena.take(), is_guest)
        return entry

    def _segment(self, entry: Entry) -> OrderedDict[bytes, Entry]:
        return self._warm if entry.num_uses else self._cold

    def _make_room(self) -> bool:
        if self.num_residents < self.max_blocks:
            return True
        if not (self._cold or self._warm):
            return False
        _, entry = (self._cold or self._warm).popitem(last=False)
        self._remove(entry)
        self.num_evictions += 1
        self._on_evict(entry.key)
        return True

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._arena.give(entry.number)
        if entry.is_guest:
            self.num_guests -= 1
        else:
            self.num_residents -= 1
