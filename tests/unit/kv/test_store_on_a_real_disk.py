"""The store on the real disk tier: blocks outlive the process, damage is found, nothing waits."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from support.kv_blocks import BLOCK_TOKENS, block_of, keys_of, read_all, save, small_layout
from support.waiting import wait_for
from terrace_runtime.contract.config import KvTiers
from terrace_runtime.kv.disk import DiskTier
from terrace_runtime.kv.store import KvStore

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 64 << 20


def _open(
    folder: Path, num_blocks: int = 16, fingerprint: bytes = b"one"
) -> tuple[KvStore, threading.Event]:
    """A store on ``folder`` and the event that its disk's threads set."""
    layout = small_layout()
    size = layout.block_bytes(BLOCK_TOKENS)
    disk = DiskTier(folder, _LIMIT, size, fingerprint)
    tiers = KvTiers(block_tokens=BLOCK_TOKENS, host_bytes=num_blocks * size)
    ready = threading.Event()
    return KvStore(tiers, layout, disk, time.monotonic, on_ready=ready.set), ready


def _read(store: KvStore, ready: threading.Event, keys: list[bytes]) -> tuple[int, bool]:
    """Blocks that came, and whether the reading failed; sleeps only when nothing is there."""
    reading = store.open(keys, "reader")
    count = 0
    while not (reading.is_done or reading.is_failed):
        ready.clear()
        taken = reading.take()
        if taken is None:
            if not reading.is_failed:
                assert ready.wait(30), "the engine is woken when a block lands"
            continue
        assert np.array_equal(taken[1], block_of(keys[count], store.block_bytes))
        count += 1
    is_failed = reading.is_failed
    reading.close()
    return count, is_failed


def test_blocks_come_back_after_a_restart(tmp_path: Path) -> None:
    store, _ = _open(tmp_path)
    keys = keys_of(40)
    for first in range(0, 40, 10):
        save(store, keys[first : first + 10])
        store.flush(30)
    assert store.report().tiers[1].blocks == 40
    store.close()
    store, ready = _open(tmp_path)
    found = store.match(keys)
    assert (found.num_blocks, found.num_disk) == (40, 40)
    assert _read(store, ready, keys) == (40, False)
    report = store.report()
    assert report.tiers[1].hits == 40
    assert report.disk_read_bytes_per_second > 0
    assert report.tiers[0].blocks == 16
    store.close()


def test_blocks_of_another_fingerprint_are_not_found(tmp_path: Path) -> None:
    store, _ = _open(tmp_path)
    save(store, keys_of(4))
    store.flush(30)
    store.close()
    store, _ = _open(tmp_path, fingerprint=b"other")
    assert store.match(keys_of(4)).num_blocks == 0
    store.close()


def test_a_damaged_file_ends_the_reading_and_is_counted(tmp_path: Path) -> None:
    store, _ = _open(tmp_path)
    keys = keys_of(12)
    save(store, keys)
    store.flush(30)
    store.close()
    store, ready = _open(tmp_path)
    found = store.match(keys).num_blocks
    needle = block_of(keys[5], store.block_bytes).tobytes()
    (path,) = [one for one in tmp_path.rglob("*") if one.is_file() and needle in one.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(needle) + 7] ^= 0x10
    path.write_bytes(data)
    assert found == 12
    assert _read(store, ready, keys) == (5, True)
    assert store.report().rejected_blocks == 1
    assert store.match(keys).num_blocks == 5
    assert save(store, keys) == [keys[5]]
    assert _read(store, ready, keys) == (12, False)
    store.close()


def test_a_prefetch_lands_while_the_engine_does_something_else(tmp_path: Path) -> None:
    store, _ = _open(tmp_path)
    keys = keys_of(8)
    save(store, keys)
    store.flush(30)
    store.close()
    store, _ = _open(tmp_path)
    store.prefetch(keys, "queued")

    def has_landed() -> bool:
        store.poll()
        return store.match(keys).num_host == 8

    wait_for("the prefix is in host memory", has_landed, every=0.005)
    assert read_all(store, keys, "queued") == 8
    store.close()


def test_a_disk_that_cannot_be_used_serves_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    store, _ = _open(taken)
    keys = keys_of(8)
    assert save(store, keys) == keys
    assert read_all(store, keys) == 8
    store.flush(1)
    store.close()


def test_reading_spilling_and_evicting_at_once_keeps_every_byte(tmp_path: Path) -> None:
    store, ready = _open(tmp_path, num_blocks=12)
    prompts = [keys_of(6, token) for token in range(20)]
    chance = np.random.default_rng(5)
    for number in range(150):
        keys = prompts[int(chance.integers(len(prompts)))]
        count, is_failed = _read(store, ready, keys)
        assert not is_failed
        save(store, keys[count:])
        store.touch(keys)
        if number % 3 == 0:
            store.flush(30)
        if number % 10 == 0:
            store.prefetch(prompts[number % len(prompts)], "queued")
            store.forget("queued")
    store.flush(30)
    report = store.report()
    assert report.rejected_blocks == 0
    assert report.tiers[0].used_bytes <= report.tiers[0].limit_bytes
    assert report.tiers[1].hits > 0
    store.close()
