"""A disk that fails stops spilling for a while, never reading what is still good."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.kv_disk import (
    BLOCK_BYTES,
    LIMIT_BYTES,
    Answers,
    FaultyVolume,
    block_of,
    folder_bytes,
    found,
    key_of,
    open_tier,
    segment_files,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0


def failing(calls: set[str], code: int) -> Callable[[str], OSError | None]:
    return lambda call: OSError(code, os.strerror(code)) if call in calls else None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_refused_write_pauses_spilling_and_nothing_else(tmp_path: Path, code: int) -> None:
    now = 0.0
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume, clock=lambda: now)
    write(tier, range(10))
    volume.error = failing({"write"}, code)

    assert write(tier, range(10, 15)) == [False] * 5
    assert os.strerror(code) in tier.problem
    assert tier.stats().failures > 0
    assert not tier.write(key_of(20), block_of(20), Answers())
    assert found(tier, range(20)) == set(range(10))
    now = 1.0
    assert write(tier, [10]) == [False]
    now = 2.0  # Twice as long from the second time on.
    assert not tier.write(key_of(20), block_of(20), Answers())

    volume.error = failing(set(), 0)
    now = 3.0
    assert write(tier, range(10, 15)) == [True] * 5
    assert tier.problem == ""
    assert found(tier, range(20)) == set(range(15))
    tier.close()
    again = open_tier(tmp_path)
    assert found(again, range(20)) == set(range(15))
    assert again.stats().rejected == 0
    again.close()


def test_a_refused_write_leaves_no_bytes_behind(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    write(tier, [0])
    size = segment_files(tmp_path)[0].stat().st_size
    volume.error = failing({"write"}, errno.ENOSPC)
    write(tier, [1])
    assert segment_files(tmp_path)[0].stat().st_size == size
    tier.close()


def test_what_waits_when_the_disk_fails_is_given_back(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    volume.may_write.clear()
    answers = Answers()
    for number in range(200):
        assert tier.write(key_of(number), block_of(number), answers)
    volume.error = failing({"write"}, errno.ENOSPC)
    volume.may_write.set()
    assert answers.wait(200) == [False] * 200
    assert tier.stats().failures == 200
    tier.close()


def test_a_segment_that_cannot_be_removed_keeps_the_limit(tmp_path: Path) -> None:
    now = 0.0
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume, clock=lambda: now)
    volume.error = failing({"remove"}, errno.EPERM)
    for number in range(200):
        now += 100
        write(tier, [number], heat=3)
        assert folder_bytes(tmp_path) <= tier.used_bytes <= LIMIT_BYTES
    assert "Operation not permitted" in tier.problem
    volume.error = failing(set(), 0)
    now += 100
    assert write(tier, [500]) == [True]
    tier.close()


def test_a_segment_that_cannot_be_closed_well_is_scanned(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    volume.error = failing({"settle"}, errno.EIO)
    assert all(write(tier, range(30)))
    tier.close()
    assert tier.stats().failures > 0
    again = open_tier(tmp_path)
    assert found(again, range(30)) == set(range(30))
    again.close()


def test_a_read_error_loses_the_block_and_nothing_else(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    write(tier, range(3))
    volume.error = failing({"read"}, errno.EIO)
    answers = Answers()
    tier.read(key_of(1), block_of(9), answers)
    assert answers.wait(1) == [False]
    assert not tier.has(key_of(1))
    assert tier.stats().rejected == 1
    volume.error = failing(set(), 0)
    assert found(tier, range(3)) == {0, 2}
    assert write(tier, [1]) == [True]
    assert found(tier, range(3)) == {0, 1, 2}
    tier.close()


def test_a_segment_that_vanished_is_forgotten_whole(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(20))
    tier.close()
    again = open_tier(tmp_path)
    num_before = len(again)
    segment_files(tmp_path)[0].unlink()
    answers = Answers()
    again.read(key_of(0), block_of(9), answers)
    assert answers.wait(1) == [False]
    num_gone = num_before - len(again)
    assert num_gone > 1
    assert again.stats().rejected == num_gone
    assert found(again, range(20)) == set(range(num_gone, 20))
    again.close()


def test_writing_goes_on_when_the_segment_being_written_is_deleted(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, [1])
    for path in segment_files(tmp_path):
        path.unlink()
    assert write(tier, [2]) == [True]
    tier.close()
    again = open_tier(tmp_path)
    assert found(again, range(3)) == {2}
    again.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    if not IS_ROOT:
        pytest.skip("only root can mount")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.root
def test_a_volume_smaller_than_the_limit_keeps_a_reserve(small_disk: Path) -> None:
    block_bytes = 519_900  # eight would fit, and leave less than the reserve
    tier = open_tier(small_disk / "kv", limit_bytes=2**30, block_bytes=block_bytes)
    for number in range(20):
        assert write(tier, [number], block_bytes=block_bytes) == [True]
    assert len(tier) == 7
    facts = os.statvfs(small_disk)
    assert facts.f_bavail * facts.f_frsize >= 4 * 2**20 // 64
    tier.close()


@pytest.mark.root
def test_a_full_disk_is_left_alone_and_used_again_when_it_has_room(small_disk: Path) -> None:
    now = 0.0
    tier = open_tier(
        small_disk / "kv", limit_bytes=3 * 2**20, block_bytes=BLOCK_BYTES, clock=lambda: now
    )
    assert all(write(tier, range(50)))
    other = small_disk / "other"
    facts = os.statvfs(small_disk)
    other.write_bytes(bytes(facts.f_bavail * facts.f_frsize))
    assert not any(write(tier, range(100, 200)))
    assert "no room" in tier.problem
    assert tier.stats().failures > 0
    assert found(tier, range(200)) == set(range(50))
    other.unlink()
    now = 100.0
    assert write(tier, [300]) == [True]
    assert found(tier, range(200)) == set(range(50))
    tier.close()


LIMITED_CHILD = """
import json, resource, sys
from pathlib import Path
from support.kv_disk import open_tier, write, found

now = 0.0
tier = open_tier(Path(sys.argv[1]), clock=lambda: now)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
refused = write(tier, range(5))
problem = tier.problem
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
now = 10.0
written = write(tier, range(5))
there = sorted(found(tier, range(9)))
tier.close()
print(json.dumps([refused, problem, written, there]))
"""


def test_a_limit_on_the_size_of_files_is_such_a_fault(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", LIMITED_CHILD, str(tmp_path / "kv")],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'runtime_image'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused, problem, written, there = json.loads(child.stdout)
    assert not all(refused)
    assert "too large" in problem
    assert written == [True] * 5
    assert there == [0, 1, 2, 3, 4]
