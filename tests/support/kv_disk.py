"""Blocks whose bytes follow from their number, a disk tier at work, and a volume with faults."""

from __future__ import annotations

import hashlib
import stat
import threading
from typing import TYPE_CHECKING

import numpy as np

from terrace_runtime.kv.disk import DiskTier
from terrace_runtime.kv.disk.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from terrace_runtime.kv.disk.format import Block, Data

BLOCK_BYTES = 4000
LIMIT_BYTES = 64 * (BLOCK_BYTES + 100)
"""Room for some fifty blocks in eight segments."""
TIMEOUT_S = 100.0
"""A disk that others write much to may take seconds for a single file to be safe."""


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"key" + number.to_bytes(8, "little")).digest()


def block_of(number: int, block_bytes: int = BLOCK_BYTES, version: int = 0) -> Block:
    return np.random.default_rng((number, version)).integers(0, 256, block_bytes, np.uint8)


def open_tier(
    folder: Path,
    *,
    limit_bytes: int = LIMIT_BYTES,
    block_bytes: int = BLOCK_BYTES,
    fingerprint: bytes = b"a model",
    clock: Callable[[], float] = lambda: 0.0,
    volume: Volume | None = None,
) -> DiskTier:
    return DiskTier(folder, limit_bytes, block_bytes, fingerprint, clock=clock, volume=volume)


class Answers:
    """What ``done`` was called with, in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.seen: list[tuple[bytes, bool]] = []

    def __call__(self, key: bytes, is_done: bool) -> None:  # noqa: FBT001 - the port's callback
        with self._changed:
            self.seen.append((key, is_done))
            self._changed.notify_all()

    def wait(self, count: int) -> list[bool]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, TIMEOUT_S)
            return [is_done for _, is_done in self.seen]


def write(
    tier: DiskTier,
    numbers: Iterable[int],
    *,
    block_bytes: int = BLOCK_BYTES,
    version: int = 0,
    heat: int = 0,
) -> list[bool]:
    """Write blocks and wait; for each of them, whether it is on disk."""
    answers = Answers()
    accepted: list[bool] = []
    for number in numbers:
        block = block_of(number, block_bytes, version)
        accepted.append(tier.write(key_of(number), block, answers, heat))
    written = iter(answers.wait(sum(accepted)))
    return [is_accepted and next(written) for is_accepted in accepted]


def read(tier: DiskTier, number: int, block_bytes: int = BLOCK_BYTES) -> bytes | None:
    into = np.zeros(block_bytes, np.uint8)
    answers = Answers()
    tier.read(key_of(number), into, answers)
    return into.tobytes() if answers.wait(1)[0] else None


def found(tier: DiskTier, numbers: Iterable[int]) -> set[int]:
    """The numbers whose blocks are there; each is read and compared."""
    there = {number for number in numbers if tier.has(key_of(number))}
    for number in there:
        assert read(tier, number) == block_of(number).tobytes()
    return there


def segment_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*.kv"))


def folder_bytes(folder: Path) -> int:
    """What the tier's files take, in whole pages."""
    paths = folder.glob("segment-" + "[0-9a-f]" * 12 + ".kv")
    sizes = [facts.st_size for path in paths if stat.S_ISREG((facts := path.lstat()).st_mode)]
    return sum(-(-size // 4096) * 4096 for size in sizes)


class FaultyVolume(Volume):
    """A real folder on which calls fail or hang as the test says."""

    def __init__(self, folder: Path, max_bytes: int = LIMIT_BYTES) -> None:
        super().__init__(folder)
        self.folder = folder
        self.max_bytes = max_bytes
        self.error: Callable[[str], OSError | None] = lambda _call: None
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_writing = threading.Event()

    def _maybe_fail(self, call: str) -> None:
        error = self.error(call)
        if error is not None:
            raise error

    def create(self, serial: int) -> int:
        self._maybe_fail("create")
        return super().create(serial)

    def remove(self, serial: int) -> None:
        self._maybe_fail("remove")
        super().remove(serial)

    def write(self, fd: int, buffers: Sequence[Data], offset: int) -> None:
        self.is_writing.set()
        assert self.may_write.wait(TIMEOUT_S)
        error = self.error("write")
        if error is not None:
            # A disk that fills up takes a part first.
            super().write(fd, [memoryview(buffers[-1])[: len(buffers[-1]) // 2]], offset)
            raise error
        super().write(fd, buffers, offset)
        assert folder_bytes(self.folder) <= self.max_bytes

    def read(self, fd: int, buffers: Sequence[Data], offset: int) -> bool:
        self._maybe_fail("read")
        return super().read(fd, buffers, offset)

    def truncate(self, fd: int, length: int) -> None:
        self._maybe_fail("truncate")
        super().truncate(fd, length)

    def settle(self, fd: int) -> None:
        self._maybe_fail("settle")
        super().settle(fd)
