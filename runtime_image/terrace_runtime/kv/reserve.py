"""Blocks kept in host memory by name: those of parked sequences, and pinned prefixes.

Owns: who keeps what, within a bound. Does not own: eviction, which passes over what is pinned
(``host_tier.py``). Next: ``store.py`` has one for each of the two.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.kv.host_tier import Entry, HostTier


class Reserve:
    """At most ``max_blocks`` blocks of the host tier, each counted once however many keep it."""

    def __init__(self, host: HostTier, max_blocks: int) -> None:
        self._host = host
        self._max_blocks = max_blocks
        self._owners: dict[str, list[Entry]] = {}
        self._num_keepers: Counter[bytes] = Counter()

    def has_room(self, num_blocks: int) -> bool:
        """So many blocks more can be kept, whether they are kept already or not."""
        return len(self._num_keepers) + num_blocks <= self._max_blocks

    def keep(self, keys: Sequence[bytes], owner: str) -> int:
        """Keep the leading run of ``keys``, instead of what ``owner`` kept before; its length."""
        self.release(owner)
        kept: list[Entry] = []
        for key in keys:
            entry = self._host.find(key)
            if entry is None or not entry.is_ready:
                break
            is_full = key not in self._num_keepers and len(self._num_keepers) >= self._max_blocks
            if is_full or not self._host.settle(entry):
                break
            self._host.pin(entry)
            self._num_keepers[key] += 1
            kept.append(entry)
        if kept:
            self._owners[owner] = kept
        return len(kept)

    def release(self, owner: str) -> None:
        """Let go of all that ``owner`` keeps; a stranger is a no-op."""
        # From the last on: without the first block the others are of no use.
        for entry in reversed(self._owners.pop(owner, [])):
            self._num_keepers[entry.key] -= 1
            if not self._num_keepers[entry.key]:
                del self._num_keepers[entry.key]
            self._host.unpin(entry)
