"""Rows of encoded image pieces, kept for requests to come.

Owns: the rows by key, bounded in bytes, the least recently used first. Does not own: which are
needed (``image_stage.py``). One thread uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    import numpy as np
    from numpy.typing import NDArray


class ImageRows:
    """See the module."""

    def __init__(self, max_bytes: int) -> None:
        """Rows of more than ``max_bytes`` together are kept only while they are needed."""
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._held: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        """Does not count as a use."""
        return key in self._held

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The rows of a piece; counts as a use."""
        rows = self._held.get(key)
        if rows is not None:
            self._held.move_to_end(key)
        return rows

    def put(self, key: bytes, rows: NDArray[np.float32], needed: Container[bytes]) -> None:
        """Keep ``rows``; others leave for them, but none that is ``needed``."""
        assert key not in self._held, "a piece is encoded when its rows are not here"
        self._held[key] = rows
        self.used_bytes += rows.nbytes
        self.trim(needed)

    def trim(self, needed: Container[bytes]) -> None:
        """Let go of what is too much and not ``needed``."""
        if self.used_bytes > self._max_bytes:
            for key in [key for key in self._held if key not in needed]:
                self.used_bytes -= self._held.pop(key).nbytes
                if self.used_bytes <= self._max_bytes:
                    return
