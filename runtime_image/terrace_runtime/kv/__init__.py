"""The tiers below the device: KV blocks by content, in host memory and on disk.

Owns: the port between the store and the disk, and everything behind ``store.py``: block keys, the
cut between a sequence's state and its blocks, the host tier. Does not own: which cells the device
holds (``engine.prefix``) or any call into llama.cpp (``backend``). Next: ``store.py`` is what the
engine calls, ``disk/`` the real disk tier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.kv.disk.stats import DiskStats


class BlockDisk(Protocol):
    """Blocks on a disk. No method waits for it but ``flush`` and ``close``."""

    def __len__(self) -> int:
        """Blocks that it holds."""

    @property
    def used_bytes(self) -> int:
        """Bytes that it takes of the volume."""

    @property
    def limit_bytes(self) -> int:
        """The most of them."""

    def stats(self) -> DiskStats:
        """Counters since start."""

    def has(self, key: bytes) -> bool:
        """Known to be there; reading it may still fail."""

    def write(
        self,
        key: bytes,
        block: NDArray[np.uint8],
        done: Callable[[bytes, bool], None],
        heat: int = 0,
    ) -> bool:
        """Queue a block; False: not now. It must not change until ``done(key, was_written)``.

        ``done`` is called on the disk's own thread. ``heat`` is how often the block was used.
        """

    def read(
        self, key: bytes, into: NDArray[np.uint8], done: Callable[[bytes, bool], None]
    ) -> None:
        """Queue a read; ``done(key, is_good)`` is called on the disk's own thread, once."""

    def touch(self, keys: Iterable[bytes]) -> None:
        """These were used again."""

    def flush(self, timeout_s: float) -> None:
        """Wait until all that is queued is written or refused, or for so long."""

    def close(self) -> None:
        """End the threads; each ``done`` was called when this returns."""
