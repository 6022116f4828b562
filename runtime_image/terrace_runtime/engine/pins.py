"""Prefixes that clients asked to keep: pinned in host memory, the oldest first to go.

Owns: who is pinned and in which order. Does not own: the bound (``KvTiers.pinned_bytes``, held by
``kv.store``) or saving the cells (``residents.py``). Next: ``prefix.py`` pins when a request ends.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from terrace_runtime.kv.store import KvStore


class Pins:
    """Pinned prefixes by the key of their last block."""

    def __init__(self, store: KvStore) -> None:
        """``store`` holds the blocks and says how many it can keep."""
        self._store = store
        self._pinned: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pinned)

    def add(self, keys: Seq[bytes]) -> int:
        """Keep these blocks, older pins making room; how many of the first ones there is room for.

        Pinning the same prefix again makes it the newest.
        """
        if not keys:
            return 0
        owner = keys[-1].hex()
        self._unpin(owner)
        kept = self._store.pin(keys, owner)
        while kept < len(keys) and self._pinned:
            self._store.unpin(owner)
            self._unpin(next(iter(self._pinned)))
            kept = self._store.pin(keys, owner)
        if kept:
            self._pinned[owner] = None
        return kept

    def _unpin(self, owner: str) -> None:
        if owner in self._pinned:
            del self._pinned[owner]
            self._store.unpin(owner)
