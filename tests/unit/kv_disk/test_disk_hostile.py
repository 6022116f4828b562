"""Whatever lies in the folder, only whole blocks of ours are served, and no more is touched."""

from __future__ import annotations

import os
import shutil
import struct
from typing import TYPE_CHECKING

import pytest

from support.kv_disk import (
    BLOCK_BYTES,
    LIMIT_BYTES,
    folder_bytes,
    found,
    key_of,
    open_tier,
    read,
    segment_files,
    write,
)
from terrace_runtime.kv.disk import format as layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUM_BLOCKS = 20
RECORD = layout.record_bytes(BLOCK_BYTES)


def fill(folder: Path) -> None:
    tier = open_tier(folder)
    assert all(write(tier, range(NUM_BLOCKS)))
    tier.close()
    assert len(segment_files(folder)) > 2


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        file.write(data)


def slots(path: Path) -> int:
    return (path.stat().st_size - layout.HEAD_BYTES) // RECORD


def spoil_head(path: Path) -> None:
    patch(path, 20, b"\xff")


def spoil_footer(path: Path) -> None:
    patch(path, -1, b"\xff\xff")


def drop_footer(path: Path) -> None:
    os.truncate(path, layout.HEAD_BYTES + slots(path) * RECORD)


def tear_tail(path: Path) -> None:
    os.truncate(path, layout.HEAD_BYTES + 2 * RECORD + RECORD - 1)


def hostile_count(path: Path) -> None:
    head = layout.decode_head(path.read_bytes()[: layout.HEAD_BYTES])
    assert head is not None
    plain = struct.pack("<8sQI", b"TRRCKVF\n", 2**63, 0)
    checksum = layout.checksum(plain, head.seed)
    patch(path, path.stat().st_size - layout.TRAILER_BYTES, plain + struct.pack("<I", checksum))


def hostile_length(path: Path) -> None:
    """A record that says, with a good checksum, that its block has 2**63 bytes."""
    head = layout.decode_head(path.read_bytes()[: layout.HEAD_BYTES])
    assert head is not None
    drop_footer(path)
    plain = struct.pack("<4sI32sQI", b"TKVR", 0, key_of(0), 2**63, 0)
    patch(path, layout.HEAD_BYTES, plain + struct.pack("<I", layout.checksum(plain, head.seed)))


def hostile_block_bytes(path: Path) -> None:
    fingerprint = layout.fingerprint_digest(b"a model")
    serial = int(path.stem.split("-")[1], 16)
    patch(path, 0, layout.encode_head(serial, 2**63, fingerprint))


def spoil_a_block(path: Path) -> None:
    patch(path, layout.HEAD_BYTES + layout.RECORD_HEAD_BYTES + 99, b"ruin")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x" * 500)


def inflate(path: Path) -> None:
    os.truncate(path, 2**40)


def swap_a_record(path: Path) -> None:
    """The first record of the next segment, in the place of ours."""
    other = segment_files(path.parent)[1].read_bytes()
    patch(path, layout.HEAD_BYTES, other[layout.HEAD_BYTES :][:RECORD])


def delete(path: Path) -> None:
    path.unlink()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "precious").write_text("of somebody else")


def replace_by_link(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [
    spoil_head, spoil_footer, drop_footer, tear_tail, hostile_count, hostile_length,
    hostile_block_bytes, spoil_a_block, empty, grow, inflate, swap_a_record, delete,
    replace_by_folder, replace_by_link, replace_by_fifo,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_damage_to_one_segment_is_skipped(
    tmp_path: Path, damage: Callable[[Path], None], which: int
) -> None:
    folder = tmp_path / "kv"
    fill(folder)
    damage(segment_files(folder)[which])

    tier = open_tier(folder)
    assert tier.problem == ""
    assert folder_bytes(folder) <= tier.used_bytes
    sound = {n for n in range(NUM_BLOCKS) if read(tier, n) is not None}
    assert len(sound) >= NUM_BLOCKS - 8
    assert found(tier, range(NUM_BLOCKS)) == sound
    # The tier lives on as if nothing had been, with what was lost written again.
    assert all(write(tier, range(NUM_BLOCKS)))
    assert found(tier, range(NUM_BLOCKS)) == set(range(NUM_BLOCKS))
    assert tier.used_bytes <= LIMIT_BYTES
    tier.close()
    again = open_tier(folder)
    assert found(again, range(NUM_BLOCKS)) == set(range(NUM_BLOCKS))
    again.close()


@pytest.mark.parametrize("damage", [spoil_footer, drop_footer, hostile_count, grow])
def test_without_a_footer_the_records_themselves_are_found(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    fill(tmp_path)
    for path in segment_files(tmp_path):
        damage(path)
    tier = open_tier(tmp_path)
    assert found(tier, range(NUM_BLOCKS)) == set(range(NUM_BLOCKS))
    tier.close()


@pytest.mark.parametrize(
    "damage", [spoil_head, hostile_length, spoil_a_block, swap_a_record, inflate, empty]
)
def test_what_is_skipped_is_counted(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    fill(tmp_path)
    damage(segment_files(tmp_path)[0])
    tier = open_tier(tmp_path)
    for number in range(NUM_BLOCKS):
        read(tier, number)
    assert tier.stats().rejected == 1
    tier.close()


def test_what_others_put_into_the_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    fill(folder)
    replace_by_folder(segment_files(folder)[0])
    replace_by_link(segment_files(folder)[1])
    (folder / "notes.txt").write_text("mine")
    (folder / "segment-xyz.kv").write_text("mine too")
    for start in range(0, 300, 20):
        tier = open_tier(folder)
        assert all(write(tier, range(start, start + 20)))
        assert folder_bytes(folder) <= tier.used_bytes <= LIMIT_BYTES
        tier.close()
    assert (tmp_path / "outside").stat().st_size > 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "segment-xyz.kv").read_text() == "mine too"
    assert next(folder.glob("*/precious")).read_text() == "of somebody else"


def test_a_copy_of_a_segment_under_another_name_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    shutil.copy(segment_files(tmp_path)[0], tmp_path / "segment-0000000000ff.kv")
    tier = open_tier(tmp_path)
    assert found(tier, range(NUM_BLOCKS)) == set(range(NUM_BLOCKS))
    assert tier.stats().rejected == 1
    assert folder_bytes(tmp_path) <= LIMIT_BYTES
    tier.close()


def test_a_name_at_the_end_of_the_numbers_does_not_stop_the_tier(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "segment-ffffffffffff.kv").write_bytes(b"x")
    (tmp_path / "segment-7fffffffffff.kv").write_bytes(b"x")
    tier = open_tier(tmp_path)
    for start in range(100, 200, 20):
        assert all(write(tier, range(start, start + 20)))
    tier.close()
    again = open_tier(tmp_path)
    assert found(again, range(180, 200)) == set(range(180, 200))
    again.close()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    folder.mkdir()
    (folder / "lock").symlink_to(tmp_path / "elsewhere")
    tier = open_tier(folder)
    assert tier.problem
    assert not (tmp_path / "elsewhere").exists()
    tier.close()


def test_segments_swapped_under_a_running_tier_are_not_believed(tmp_path: Path) -> None:
    fill(tmp_path)
    tier = open_tier(tmp_path)
    first, second = segment_files(tmp_path)[:2]
    shutil.copy(second, tmp_path / "copy")
    (tmp_path / "copy").replace(first)
    served = {n: read(tier, n) for n in range(NUM_BLOCKS)}
    lost = {n for n, data in served.items() if data is None}
    assert lost
    assert found(tier, range(NUM_BLOCKS)) == set(range(NUM_BLOCKS)) - lost
    tier.close()
