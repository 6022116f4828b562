"""Whole states of sequences at chosen positions, for models whose cells cannot be cut into blocks.

Owns: where a prompt stops so that its state can be kept, and the kept states: bounded by count and
bytes, the least recently used goes first. Does not own: block keys (``keys.py``), the copy out of
and into llama.cpp (``backend``), or when a restore pays (``engine.prefix``). One thread uses it.
The idea is that of llama-server's context checkpoints; the key is our own chained block key, so a
state is found by what it was computed from and by nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_MAX_SLACK = 1.25
"""A freed buffer serves again when it is at most this much larger than what is needed."""


def next_checkpoint(
    num_computed: int, num_tokens: int, interval: int, block_tokens: int
) -> int | None:
    """Position in tokens where the next chunk of a prompt stops so that its state can be kept.

    Positions are ends of whole blocks, for only those have a key: every ``interval`` tokens, and
    the last one that leaves a token of the prompt to compute, where the next turn of the
    conversation goes on. None: there is none after ``num_computed``.
    """
    step = max(block_tokens, interval // block_tokens * block_tokens)
    last = (num_tokens - 1) // block_tokens * block_tokens
    if last <= num_computed:
        return None
    return min(last, (num_computed // step + 1) * step)


@dataclass(slots=True)
class _Checkpoint:
    num_tokens: int
    num_bytes: int
    buffer: NDArray[np.uint8]


@dataclass(slots=True)
class CheckpointCounters:
    """Counts since start."""

    saves: int = 0
    hits: int = 0
    """States handed out."""
    evictions: int = 0
    refusals: int = 0
    """States larger than all that may be kept, and copies that failed."""


class CheckpointStore:
    """States by the chained key of the last block that they cover; every operation is O(1)."""

    def __init__(self, max_count: int, max_bytes: int, block_tokens: int) -> None:
        """At most ``max_count`` states in ``max_bytes``; 0 of either keeps none."""
        self.counters = CheckpointCounters()
        self.max_bytes = max_bytes
        self._max_count = max_count
        self._block_tokens = block_tokens
        self._held: OrderedDict[bytes, _Checkpoint] = OrderedDict()
        self._used_bytes = self._largest = 0

    def __len__(self) -> int:
        """States kept."""
        return len(self._held)

    @property
    def used_bytes(self) -> int:
        """Bytes of the buffers in use."""
        return self._used_bytes

    @property
    def has_room_for_two(self) -> bool:
        """Of the largest states so far: one outlives the save of the next."""
        return self._max_count > 1 and 2 * self._largest <= self.max_bytes > 0

    def has(self, key: bytes) -> bool:
        """Whether a state for ``key`` is kept; does not count as a use."""
        return key in self._held

    def find(self, keys: Sequence[bytes]) -> int:
        """How many of the leading blocks ``keys`` the deepest kept state covers; 0: no state.

        The state is that of ``keys[result - 1]``. Does not count as a use.
        """
        for index in range(len(keys) - 1, -1, -1):
            if keys[index] in self._held:
                return index + 1
        return 0

    def save(
        self, key: bytes, num_tokens: int, num_bytes: int, fill: Callable[[NDArray[np.uint8]], int]
    ) -> bool:
        """Keep a state of ``num_tokens`` tokens; the least recently used make room for it.

        ``fill`` writes the state into a buffer of ``num_bytes`` and returns how many bytes it
        wrote, 0 when it failed. False: nothing was kept. A key that is held already counts as used.
        """
        assert num_tokens % self._block_tokens == 0, "a key stands for whole blocks"
        if key in self._held:
            self._held.move_to_end(key)
            return True
        self._largest = max(self._largest, num_bytes)
        if not self._max_count or not 0 < num_bytes <= self.max_bytes:
            self.counters.refusals += 1
            return False
        buffer = self._buffer(num_bytes)
        written = fill(buffer[:num_bytes])
        if not written:
            self.counters.refusals += 1
            return False
        self._held[key] = _Checkpoint(num_tokens, written, buffer)
        self._used_bytes += buffer.nbytes
        self.counters.saves += 1
        return True

    def load(self, key: bytes) -> NDArray[np.uint8]:
        """The state of ``key``, which is held; valid until the next ``save``."""
        self._held.move_to_end(key)
        self.counters.hits += 1
        found = self._held[key]
        return found.buffer[: found.num_bytes]

    def drop(self, key: bytes) -> None:
        """Forget a state that llama.cpp refused; unknown keys are ignored."""
        found = self._held.pop(key, None)
        if found is not None:
            self._used_bytes -= found.buffer.nbytes

    def _buffer(self, num_bytes: int) -> NDArray[np.uint8]:
        """Room for a state: an evicted one's buffer where its size is right, else a new one."""
        spare: NDArray[np.uint8] | None = None
        while len(self._held) >= self._max_count or self._used_bytes + num_bytes > self.max_bytes:
            _, evicted = self._held.popitem(last=False)
            self._used_bytes -= evicted.buffer.nbytes
            self.counters.evictions += 1
            if num_bytes <= evicted.buffer.nbytes <= num_bytes * _MAX_SLACK:
                spare = evicted.buffer
        fits = spare is not None and self._used_bytes + spare.nbytes <= self.max_bytes
        return spare if spare is not None and fits else np.empty(num_bytes, np.uint8)
