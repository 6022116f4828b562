"""The disk tier against a dict: what is read is what was written, or nothing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.kv_disk import (
    LIMIT_BYTES,
    FaultyVolume,
    block_of,
    folder_bytes,
    key_of,
    open_tier,
    read,
    segment_files,
    write,
)

if TYPE_CHECKING:
    from terrace_runtime.kv.disk import DiskTier

NUMBERS = 60
numbers = st.integers(0, NUMBERS - 1)
runs = st.tuples(numbers, st.integers(1, 20)).map(
    lambda run: range(run[0], min(run[0] + run[1], NUMBERS))
)
limits = st.sampled_from([LIMIT_BYTES, LIMIT_BYTES // 2, LIMIT_BYTES // 4])


class DiskTierModel(RuleBasedStateMachine):
    """Writes, reads, touches, restarts, limits, faults and damage, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.written: dict[int, bytes] = {}
        self.version = 0
        self.limit_bytes = LIMIT_BYTES
        self.is_damaged = False
        self.now = 0.0
        self.tier: DiskTier
        self.volume: FaultyVolume

    @initialize(limit_bytes=limits)
    def start(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.volume = FaultyVolume(self.folder, limit_bytes)
        self.tier = open_tier(
            self.folder, limit_bytes=limit_bytes, volume=self.volume, clock=lambda: self.now
        )
        assert self.tier.problem == ""

    def teardown(self) -> None:
        self.tier.close()
        shutil.rmtree(self.folder)

    @rule(run=runs, heat=st.integers(0, 2))
    def write(self, run: range, heat: int) -> None:
        self.now += 100
        self.version += 1
        # One by one: a block written last in a group may evict those before it.
        for number in run:
            is_new = not self.tier.has(key_of(number))
            if write(self.tier, [number], version=self.version, heat=heat) == [True] and is_new:
                self.written[number] = block_of(number, version=self.version).tobytes()
                assert self.tier.has(key_of(number))

    @rule(number=numbers)
    def read(self, number: int) -> None:
        is_expected = self.tier.has(key_of(number)) and not self.is_damaged
        data = read(self.tier, number)
        assert data is None or data == self.written[number]
        assert data is not None or not is_expected

    @rule(run=runs)
    def touch(self, run: range) -> None:
        self.tier.touch([key_of(number) for number in run])

    @rule(limit_bytes=limits)
    def restart(self, limit_bytes: int) -> None:
        before = {number for number in range(NUMBERS) if self.tier.has(key_of(number))}
        self.tier.close()
        is_as_large = limit_bytes >= self.limit_bytes
        self.start(limit_bytes)
        after = {number for number in range(NUMBERS) if self.tier.has(key_of(number))}
        assert self.is_damaged or after <= before
        assert self.is_damaged or not is_as_large or after == before

    @rule(
        run=runs,
        calls=st.sets(st.sampled_from(["write", "create", "remove", "truncate", "settle"])),
        count=st.integers(1, 4),
    )
    def fail(self, run: range, calls: set[str], count: int) -> None:
        errors = iter([OSError(errno.EIO, "a fault")] * count)
        self.volume.error = lambda made: next(errors, None) if made in calls else None
        self.write(run, 1)
        self.volume.error = lambda _: None

    @precondition(lambda self: bool(segment_files(self.folder)))
    @rule(which=st.integers(0), at=st.integers(0, LIMIT_BYTES), count=st.integers(1, 50))
    def corrupt(self, which: int, at: int, count: int) -> None:
        path = self.pick(which)
        with path.open("r+b") as file:
            file.seek(at % max(path.stat().st_size, 1))
            ruined = bytes((byte + 1) % 256 for byte in file.read(count))
            file.seek(-len(ruined), os.SEEK_CUR)
            file.write(ruined)

    @precondition(lambda self: bool(segment_files(self.folder)))
    @rule(which=st.integers(0), at=st.integers(0, LIMIT_BYTES))
    def truncate(self, which: int, at: int) -> None:
        path = self.pick(which)
        os.truncate(path, at % (path.stat().st_size + 1))

    @precondition(lambda self: bool(segment_files(self.folder)))
    @rule(which=st.integers(0))
    def delete(self, which: int) -> None:
        self.pick(which).unlink()

    def pick(self, which: int) -> Path:
        self.is_damaged = True
        files = segment_files(self.folder)
        return files[which % len(files)]

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "tier"):
            assert folder_bytes(self.folder) <= self.tier.used_bytes <= self.limit_bytes


TestDiskTierModel = DiskTierModel.TestCase
TestDiskTierModel.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
