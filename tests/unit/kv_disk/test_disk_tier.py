"""The disk tier keeps blocks over restarts, within its limit, the hot ones longest."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.kv_disk import (
    BLOCK_BYTES,
    LIMIT_BYTES,
    TIMEOUT_S,
    Answers,
    FaultyVolume,
    block_of,
    folder_bytes,
    found,
    key_of,
    open_tier,
    read,
    segment_files,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_written_is_read_back_and_survives_a_restart(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "kv")
    assert all(write(tier, range(20)))
    assert found(tier, range(25)) == set(range(20))
    used_bytes = tier.used_bytes
    tier.close()

    again = open_tier(tmp_path / "kv")
    assert len(again) == 20
    assert again.used_bytes == used_bytes
    assert found(again, range(25)) == set(range(20))
    assert again.stats().rejected == 0
    assert again.stats().read == 20
    again.close()


def test_only_we_may_read_the_files(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "deep" / "kv")
    write(tier, range(3))
    tier.close()
    folder = tmp_path / "deep" / "kv"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_limit_holds_while_ten_times_as_much_is_written(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path / "kv")  # looks at the folder after each write
    tier = open_tier(tmp_path / "kv", volume=volume)
    for start in range(0, 500, 20):
        assert all(write(tier, range(start, start + 20)))
        tier.touch([key_of(number) for number in range(start, start + 10)])
        assert folder_bytes(tmp_path / "kv") <= tier.used_bytes <= LIMIT_BYTES
    assert found(tier, range(490, 500)) == set(range(490, 500))
    stats = tier.stats()
    assert stats.written == 500
    assert stats.carried > 0
    assert stats.evictions == 500 - len(tier)
    tier.close()


def test_blocks_used_again_outlive_those_that_were_not(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    hot = [3, 4, 40]
    for start in range(0, 300, 10):
        write(tier, range(start, start + 10))
        tier.touch([key_of(number) for number in hot])
    assert found(tier, range(100)) == set(hot)
    tier.close()


def test_a_block_that_was_hot_on_the_way_down_is_hot_on_disk(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, [0], heat=10**9)
    write(tier, range(1, 61))
    assert found(tier, range(5)) == {0}
    tier.close()


def test_a_block_cools_with_each_time_it_is_carried_over(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, [0], heat=1)
    write(tier, range(1, 61))
    assert tier.has(key_of(0))
    write(tier, range(61, 200))
    assert not tier.has(key_of(0))
    tier.close()


def test_heat_of_the_segment_being_written_survives_a_restart(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(5))
    tier.touch([key_of(1)] * 3)
    tier.close()
    again = open_tier(tmp_path)
    write(again, range(10, 70))
    assert found(again, range(5)) == {1}
    again.close()


def test_a_block_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, [1, 1, 2])
    assert write(tier, [1, 2]) == [True, True]
    assert tier.stats().written == 2
    tier.close()


def test_blocks_of_an_old_fingerprint_are_never_found_and_leave_first(tmp_path: Path) -> None:
    old = open_tier(tmp_path, fingerprint=b"the old model")
    write(old, range(30))
    old.close()
    old_files = set(segment_files(tmp_path))

    tier = open_tier(tmp_path, fingerprint=b"the new model")
    assert len(tier) == 0
    assert read(tier, 3) is None
    assert tier.used_bytes >= folder_bytes(tmp_path)
    assert all(write(tier, range(45)))
    assert found(tier, range(45)) == set(range(45))
    assert not old_files & set(segment_files(tmp_path))
    assert tier.stats().evictions == 0
    tier.close()


def test_the_older_model_leaves_first_when_its_blocks_are_the_newer_ones(tmp_path: Path) -> None:
    for fingerprint, numbers in [(b"one", range(20)), (b"two", range(20, 40))]:
        tier = open_tier(tmp_path, fingerprint=fingerprint)
        write(tier, numbers)
        tier.close()
    tier = open_tier(tmp_path, fingerprint=b"one")
    assert all(write(tier, range(100, 125)))
    assert found(tier, range(125)) == {*range(20), *range(100, 125)}
    tier.close()


def test_an_evicted_segment_frees_its_bytes_even_while_it_is_open(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(10))
    with segment_files(tmp_path)[0].open("rb") as reader:
        for number in range(100, 180):
            write(tier, [number])
        assert os.fstat(reader.fileno()).st_size == 0
    tier.close()


def test_another_block_size_is_another_fingerprint(tmp_path: Path) -> None:
    old = open_tier(tmp_path)
    write(old, range(5))
    old.close()
    tier = open_tier(tmp_path, block_bytes=BLOCK_BYTES // 2)
    assert len(tier) == 0
    assert write(tier, [1], block_bytes=BLOCK_BYTES // 2) == [True]
    tier.close()


def test_a_lower_limit_evicts_the_oldest_at_start(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(50))
    tier.close()
    smaller = open_tier(tmp_path, limit_bytes=LIMIT_BYTES // 2)
    assert folder_bytes(tmp_path) <= smaller.used_bytes <= LIMIT_BYTES // 2
    kept = found(smaller, range(50))
    assert kept
    assert kept == set(range(min(kept), 50))
    for number in range(100, 150):
        assert write(smaller, [number]) == [True]
    assert smaller.stats().failures == 0
    assert folder_bytes(tmp_path) <= LIMIT_BYTES // 2
    smaller.close()


@pytest.mark.parametrize("limit_bytes", [0, BLOCK_BYTES, 2 * BLOCK_BYTES])
def test_a_limit_too_small_for_a_block_says_so(tmp_path: Path, limit_bytes: int) -> None:
    tier = open_tier(tmp_path, limit_bytes=limit_bytes)
    assert write(tier, [1]) == [False]
    assert "maxDisk" in tier.problem
    assert folder_bytes(tmp_path) <= limit_bytes
    tier.close()


def test_a_limit_of_one_block_keeps_the_newest(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, limit_bytes=3 * 4096)
    for number in range(4):
        assert write(tier, [number]) == [True]
        assert found(tier, range(4)) == {number}
        assert folder_bytes(tmp_path) <= tier.used_bytes <= 3 * 4096
    tier.close()


def test_restarts_go_on_with_the_same_segment(tmp_path: Path) -> None:
    for number in range(5):
        tier = open_tier(tmp_path)
        write(tier, [number])
        tier.close()
    assert len(segment_files(tmp_path)) == 1
    tier = open_tier(tmp_path)
    assert found(tier, range(9)) == set(range(5))
    tier.close()


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    now = 0.0
    first = open_tier(tmp_path)
    write(first, range(3))
    second = open_tier(tmp_path, clock=lambda: now)
    assert "another process" in second.problem
    assert str(tmp_path) in second.problem
    assert not second.write(key_of(7), block_of(7), Answers())
    assert read(second, 1) is None
    first.close()

    now = 60.0
    assert write(second, [7]) == [True]
    assert second.problem == ""
    assert found(second, range(9)) == {0, 1, 2, 7}
    second.close()


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "kv").write_bytes(b"")
    tier = open_tier(tmp_path / "kv")
    assert str(tmp_path / "kv") in tier.problem
    assert not tier.has(key_of(1))
    assert read(tier, 1) is None
    tier.close()


def test_reads_do_not_wait_for_a_write_that_hangs(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    write(tier, range(5))
    volume.is_writing.clear()
    volume.may_write.clear()
    answers = Answers()
    assert tier.write(key_of(9), block_of(9), answers)
    assert volume.is_writing.wait(TIMEOUT_S)
    assert found(tier, range(5)) == set(range(5))
    assert answers.seen == []
    volume.may_write.set()
    assert answers.wait(1) == [True]
    tier.close()


def test_a_full_queue_refuses_and_each_accepted_block_is_answered_once(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    volume.may_write.clear()
    answers = Answers()
    block = block_of(0)
    accepted = [tier.write(key_of(number), block, answers) for number in range(3000)]
    assert 1000 < sum(accepted) < 1200
    volume.may_write.set()
    tier.flush(TIMEOUT_S)
    assert len(answers.wait(sum(accepted))) == sum(accepted)
    assert len({key for key, _ in answers.seen}) == sum(accepted)
    tier.close()


def test_closing_answers_everything_even_when_the_disk_hangs(tmp_path: Path) -> None:
    volume = FaultyVolume(tmp_path)
    tier = open_tier(tmp_path, volume=volume)
    volume.may_write.clear()
    answers = Answers()
    assert tier.write(key_of(0), block_of(0), answers)
    assert volume.is_writing.wait(TIMEOUT_S)
    waiting = range(1, 10)
    assert all(tier.write(key_of(number), block_of(number), answers) for number in waiting)
    tier.close(timeout_s=0.05)
    assert answers.seen == [(key_of(number), False) for number in waiting]
    volume.may_write.set()
    answers.wait(10)
    assert len(answers.seen) == 10
    assert not tier.write(key_of(1), block_of(1), answers)
    tier.read(key_of(1), np.zeros(BLOCK_BYTES, np.uint8), answers)
    assert answers.wait(11)[-1] is False
    tier.close()


def test_closing_writes_what_is_queued(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    answers = Answers()
    for number in range(30):
        assert tier.write(key_of(number), block_of(number), answers)
    tier.close(TIMEOUT_S)
    assert answers.wait(30) == [True] * 30
    again = open_tier(tmp_path)
    assert found(again, range(30)) == set(range(30))
    again.close()


def test_an_owner_that_fails_does_not_stop_the_threads(tmp_path: Path) -> None:
    def fail(_key: bytes, _is_done: object) -> None:
        raise RuntimeError("the owner's fault")

    tier = open_tier(tmp_path)
    assert tier.write(key_of(1), block_of(1), fail)
    assert write(tier, [2]) == [True]
    tier.read(key_of(1), np.zeros(BLOCK_BYTES, np.uint8), fail)
    assert found(tier, range(3)) == {1, 2}
    tier.close()


def test_reads_are_right_while_segments_leave_under_them(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    choose = random.Random(7)
    written, reads = Answers(), Answers()
    buffers: list[tuple[int, np.ndarray[tuple[int], np.dtype[np.uint8]]]] = []
    for number in range(900):
        assert tier.write(key_of(number), block_of(number), written, choose.randrange(3))
        written.wait(number - 10)
        # A reader that was far behind would find that everything has left.
        reads.wait(len(buffers) - 20)
        for _ in range(2):
            buffers.append((choose.randrange(max(0, number - 60), number + 1), _buffer()))
            tier.read(key_of(buffers[-1][0]), buffers[-1][1], reads)
    answers = reads.wait(len(buffers))
    assert len(written.wait(900)) == tier.stats().written == 900
    for (number, buffer), is_read in zip(buffers, answers, strict=True):
        assert not is_read or buffer.tobytes() == block_of(number).tobytes()
    assert sum(answers) > 100
    assert tier.stats().read == sum(answers)
    assert tier.stats().evictions > 700
    # A segment that leaves is nobody's fault.
    assert tier.stats().rejected == 0
    tier.close()


def _buffer() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.zeros(BLOCK_BYTES, np.uint8)
