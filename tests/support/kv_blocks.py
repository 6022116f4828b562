"""Builders for tests of the KV tiers: layouts, states, stores, and a disk that obeys the test."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from support.engine_builders import Clock
from terrace_runtime.contract.config import KvTiers
from terrace_runtime.kv import BlockDisk
from terrace_runtime.kv.blob import MAGIC, StateLayout
from terrace_runtime.kv.disk.stats import DiskStats
from terrace_runtime.kv.keys import block_keys, root_key
from terrace_runtime.kv.store import KvStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

BLOCK_TOKENS = 8
ROOT = root_key("0" * 64, ("f16", "f16"), "test", BLOCK_TOKENS)


@dataclass(frozen=True)
class Shape:
    """A cache as llama.cpp writes it: (type, bytes of a row) of the keys and of the values."""

    keys: tuple[tuple[int, int], ...] = ((1, 12), (1, 12))
    values: tuple[tuple[int, int], ...] = ((1, 12), (1, 12))
    num_streams: int = 1
    stream: int = 0
    has_places: bool = False
    """Cells are those of a model with positions of several numbers."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's rows."""
        return sum(row for _, row in self.keys + self.values)


def make_state(
    shape: Shape,
    positions: Sequence[int],
    slot: int = 0,
    places: Sequence[tuple[int, int, int]] = (),
) -> NDArray[np.uint8]:
    """A state whose every row is told by its tensor and its position.

    ``places`` are (position, column, row) where those are not what ``positions`` say, by token.
    """
    parts = [struct.pack("<IiI", MAGIC, slot, shape.num_streams)]
    for stream in range(shape.num_streams):
        parts.append(struct.pack("<I", len(positions) if stream == shape.stream else 0))
        if stream != shape.stream or not positions:
            continue
        parts += [_cell(shape, token, slot, places) for token in positions]
        parts.append(struct.pack("<II", 0, len(shape.keys)))
        for tensor, (kind, row_bytes) in enumerate(shape.keys + shape.values):
            parts.append(struct.pack("<iQ", kind, row_bytes))
            parts += [row_of(tensor, position, row_bytes) for position in positions]
    return np.frombuffer(bytearray(b"".join(parts)), np.uint8)


def _cell(shape: Shape, token: int, slot: int, places: Sequence[tuple[int, int, int]]) -> bytes:
    if not shape.has_places:
        return struct.pack("<iIi", token, 1, slot)
    position, column, row = places[token] if places else (token, token, token)
    return struct.pack("<iIiiii", position, 1, column, row, token_of(token), slot)


def token_of(index: int) -> int:
    """What ``make_state`` says that a token was."""
    return 3 * index - 1


def places_with(
    num_tokens: int, images: Iterable[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """(position, column, row) by token of a text with ``images``: (text before, columns, rows).

    What follows an image goes on after its longer side, as libmtmd has it.
    """
    found: list[tuple[int, int, int]] = []
    position = 0
    for before, columns, rows in images:
        found += [(at, at, at) for at in range(position, position + before)]
        position += before
        found += [
            (position, position + column, position + row)
            for row in range(rows)
            for column in range(columns)
        ]
        position += max(columns, rows)
    found += [(at, at, at) for at in range(position, position + num_tokens)]
    return found[:num_tokens]


def row_of(tensor: int, position: int, row_bytes: int) -> bytes:
    """The bytes that ``make_state`` gives a row."""
    seed = struct.pack("<HI", tensor, position)
    return (seed * (row_bytes // len(seed) + 1))[:row_bytes]


def small_layout() -> StateLayout:
    """48 bytes a token."""
    return StateLayout.read(make_state(Shape(), [0]))


def block_of(key: bytes, num_bytes: int) -> NDArray[np.uint8]:
    """Bytes that only this key's block has."""
    return np.frombuffer((key * (num_bytes // len(key) + 1))[:num_bytes], np.uint8)


def keys_of(num_blocks: int, first_token: int = 0) -> list[bytes]:
    """Keys of a prompt; another first token makes another prompt."""
    return block_keys(ROOT, [first_token, *range(1, num_blocks * BLOCK_TOKENS)], BLOCK_TOKENS)


def make_store(
    num_blocks: int,
    disk: BlockDisk | None = None,
    *,
    num_ahead: int = 4,
    on_ready: Callable[[], None] = lambda: None,
    **changes: Any,
) -> KvStore:
    """A store of so many host blocks whose prefetches land at most ``num_ahead``."""
    layout = small_layout()
    size = layout.block_bytes(BLOCK_TOKENS)
    values: dict[str, Any] = {
        "block_tokens": BLOCK_TOKENS,
        "host_bytes": num_blocks * size + size - 1,
        "prefetch_bytes": (num_ahead + 3) * size if num_ahead else 0,
        "pinned_bytes": num_blocks * size // 4,
    }
    clock = disk.clock if isinstance(disk, FakeDisk) else Clock()
    return KvStore(KvTiers.model_validate(values | changes), layout, disk, clock, on_ready)


def save(store: KvStore, keys: Iterable[bytes]) -> list[bytes]:
    """Put every block that is not there; the keys for which there was room."""
    saved = []
    for key in keys:
        buffer = store.put(key)
        if buffer is not None:
            buffer[:] = block_of(key, store.block_bytes)
            store.commit(key)
            saved.append(key)
    return saved


def read_all(store: KvStore, keys: Sequence[bytes], owner: str = "reader") -> int:
    """Read what the store has of ``keys``, checking every byte; how many blocks came."""
    reading = store.open(keys, owner)
    count = 0
    while (taken := reading.take()) is not None:
        index, block = taken
        assert index == count
        assert np.array_equal(block, block_of(keys[index], store.block_bytes))
        count += 1
    reading.close()
    return count


@dataclass
class FakeDisk(BlockDisk):
    """A disk that does what is queued when ``run`` is called, in order, on the caller's thread."""

    max_queue: int = 1000
    is_immediate: bool = False
    """Do everything at once, as a very fast disk would."""
    clock: Clock = field(default_factory=Clock)
    blocks: dict[bytes, bytes] = field(default_factory=dict)
    corrupt: set[bytes] = field(default_factory=set)
    touched: list[bytes] = field(default_factory=list)
    heats: dict[bytes, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    is_refusing: bool = False
    """Take nothing into the queue."""
    is_full: bool = False
    """Fail what is in the queue."""
    is_closed: bool = False

    def __post_init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self.blocks.values()))

    @property
    def limit_bytes(self) -> int:
        return 1 << 30

    def stats(self) -> DiskStats:
        return DiskStats(**self.counts)

    def has(self, key: bytes) -> bool:
        return key in self.blocks

    def write(
        self,
        key: bytes,
        block: NDArray[np.uint8],
        done: Callable[[bytes, bool], None],
        heat: int = 0,
    ) -> bool:
        if self.is_refusing or len(self.queue) >= self.max_queue:
            return False
        before = block.tobytes()
        self.heats[key] = heat

        def work() -> None:
            assert block.tobytes() == before, "a block changed while it was being written"
            if not self.is_full:
                self.blocks[key] = before
            self._count("failures" if self.is_full else "written")
            done(key, not self.is_full)

        self._add(work)
        return True

    def read(
        self, key: bytes, into: NDArray[np.uint8], done: Callable[[bytes, bool], None]
    ) -> None:
        def work() -> None:
            if key in self.corrupt or key not in self.blocks:
                self.blocks.pop(key, None)
                into[:] = 0xEE
                self._count("rejected")
                done(key, False)
                return
            into[:] = np.frombuffer(self.blocks[key], np.uint8)
            self._count("read")
            done(key, True)

        self._add(work)

    def touch(self, keys: Iterable[bytes]) -> None:
        self.touched += keys

    def flush(self, timeout_s: float) -> None:
        self.clock.now += timeout_s / 1000
        self.run()

    def close(self) -> None:
        self.run()
        self.is_closed = True

    def run(self, count: int | None = None) -> None:
        """Do the first ``count`` things that are queued, or all of them."""
        while self.queue and count != 0:
            self.queue.popleft()()
            count = None if count is None else count - 1

    def _add(self, work: Callable[[], None]) -> None:
        if self.is_immediate:
            work()
        else:
            self.queue.append(work)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
