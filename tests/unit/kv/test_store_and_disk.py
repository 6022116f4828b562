"""Behind the host tier: spilling never waits, reading lands in order, damage stops a reading."""

from __future__ import annotations

import pytest

from support.kv_blocks import (
    BLOCK_TOKENS,
    FakeDisk,
    block_of,
    keys_of,
    make_store,
    read_all,
    save,
)
from terrace_runtime.kv.keys import short_key
from terrace_runtime.kv.store import KvStore, Match


def _tiers(store: KvStore) -> dict[str, tuple[int, int]]:
    """Blocks and hits by tier."""
    return {tier.name: (tier.blocks, tier.hits) for tier in store.report().tiers}


def _on_disk(disk: FakeDisk, keys: list[bytes], size: int = 384) -> list[bytes]:
    disk.blocks |= {key: block_of(key, size).tobytes() for key in keys}
    return keys


def test_new_blocks_go_to_the_disk_behind_and_survive_eviction() -> None:
    disk = FakeDisk()
    store = make_store(8, disk)
    keys = keys_of(4)
    save(store, keys)
    assert disk.blocks == {}
    for _ in keys:
        disk.run()
        store.poll()
    assert set(disk.blocks) == set(keys)
    save(store, [keys_of(1, token)[0] for token in range(50, 60)])
    assert store.match(keys).num_disk == 4
    disk.is_immediate = True
    assert read_all(store, keys) == 4
    store.close()


def test_a_block_being_written_is_not_evicted() -> None:
    disk = FakeDisk()
    store = make_store(8, disk)
    first, *_ = save(store, [keys_of(1, token)[0] for token in range(20)])
    assert store.has(first), "its write is still queued"
    disk.run()
    assert disk.blocks[first] == block_of(first, store.block_bytes).tobytes()
    store.close()


def test_writes_never_pin_more_than_a_part_of_the_tier() -> None:
    disk = FakeDisk()
    store = make_store(8, disk)
    for token in range(200):
        assert save(store, keys_of(1, token)), "there is always room"
    store.close()


def test_what_waits_for_a_full_queue_is_written_later() -> None:
    disk = FakeDisk(max_queue=1)
    store = make_store(8, disk)
    keys = keys_of(6)
    save(store, keys)
    for _ in range(12):
        disk.run()
        disk.clock.now += 2
        store.poll()
    assert set(disk.blocks) == set(keys)
    store.close()


def test_a_disk_that_refuses_is_asked_again_only_after_a_while() -> None:
    disk = FakeDisk(is_refusing=True)
    store = make_store(8, disk)
    save(store, keys_of(2))
    disk.is_refusing = False
    store.poll()
    assert not disk.queue
    disk.clock.now += 2
    store.poll()
    assert len(disk.queue) == 2
    store.close()


def test_a_refusing_disk_stops_spilling_and_not_serving() -> None:
    disk = FakeDisk(is_refusing=True)
    store = make_store(4, disk)
    for token in range(50):
        assert save(store, keys_of(1, token))
        assert read_all(store, keys_of(1, token)) == 1
    assert disk.blocks == {}
    store.close()


def test_blocks_that_a_full_disk_failed_are_written_when_it_has_room() -> None:
    disk = FakeDisk(is_full=True)
    store = make_store(8, disk)
    keys = keys_of(4)
    save(store, keys)
    store.flush(10)
    assert disk.blocks == {}
    assert store.report().spill_failures == 2, "as many as may be written at once, and no retry"
    store.poll()
    assert not disk.queue, "it is left alone for a while"
    disk.is_full = False
    disk.clock.now += 2
    store.poll()
    store.flush(10)
    assert set(disk.blocks) == set(keys)
    store.close()


def test_what_the_disk_has_is_not_written_again() -> None:
    disk = FakeDisk()
    keys = _on_disk(disk, keys_of(2))
    store = make_store(8, disk)
    save(store, keys)
    assert not disk.queue
    store.close()


def test_flush_leaves_nothing_unwritten() -> None:
    disk = FakeDisk(max_queue=2)
    store = make_store(16, disk)
    keys = keys_of(12)
    save(store, keys)
    store.flush(10)
    assert set(disk.blocks) == set(keys)
    store.close()
    assert disk.is_closed


def test_flush_gives_up_on_a_disk_that_refuses() -> None:
    disk = FakeDisk(is_refusing=True)
    store = make_store(8, disk)
    save(store, keys_of(2))
    store.flush(10)
    assert disk.blocks == {}
    store.close()


def test_blocks_of_both_tiers_are_read_in_order() -> None:
    disk = FakeDisk(is_immediate=True)
    keys = keys_of(6)
    store = make_store(16, disk)
    save(store, keys[:2] + keys[4:5])
    _on_disk(disk, keys)
    assert store.match(keys) == Match(num_blocks=6, num_host=2, num_disk=3)
    assert read_all(store, keys) == 6
    assert _tiers(store) == {"host": (6, 3), "disk": (6, 3)}
    assert disk.touched == keys
    assert store.match(keys).num_disk == 0, "what was read is in host memory now"
    store.close()


def test_take_never_waits_and_the_engine_is_woken() -> None:
    disk = FakeDisk()
    keys = _on_disk(disk, keys_of(3))
    wakes: list[int] = []
    store = make_store(8, disk, on_ready=lambda: wakes.append(1))
    reading = store.open(keys, "reader")
    assert reading.take() is None
    assert not reading.is_done
    assert not reading.is_failed
    disk.run(1)
    assert len(wakes) == 1
    assert reading.take() is not None
    assert reading.take() is None
    disk.run()
    assert reading.take() is not None
    assert reading.take() is not None
    assert reading.is_done
    reading.close()
    store.close()


def test_a_long_reading_needs_few_landing_buffers() -> None:
    disk = FakeDisk()
    keys = _on_disk(disk, keys_of(40))
    store = make_store(4, disk, num_ahead=0)
    reading = store.open(keys, "reader")
    count = 0
    while not reading.is_done:
        disk.run()
        while reading.take() is not None:
            count += 1
        assert len(disk.queue) <= 2
    reading.close()
    assert count == 40
    assert _tiers(store)["host"][0] <= 4
    store.close()


def test_a_reading_goes_on_while_all_host_memory_is_pinned() -> None:
    disk = FakeDisk(is_immediate=True)
    store = make_store(2, disk, num_ahead=0)
    mine = keys_of(2)
    save(store, mine)
    pinned = store.open(mine, "pinning")
    keys = _on_disk(disk, keys_of(10, 9))
    assert read_all(store, keys) == 10
    assert store.match(keys).num_host == 0
    pinned.close()
    store.close()


@pytest.mark.parametrize("damage", ["corrupt", "gone"])
def test_damage_ends_a_reading_and_what_came_before_is_good(damage: str) -> None:
    disk = FakeDisk(is_immediate=True)
    keys = _on_disk(disk, keys_of(5))
    store = make_store(8, disk)
    if damage == "corrupt":
        disk.corrupt.add(keys[2])
    reading = None
    if damage == "gone":
        disk.is_immediate = False
        reading = store.open(keys, "reader")
        del disk.blocks[keys[2]]
        disk.run()
    reading = reading or store.open(keys, "reader")
    for index in range(2):
        taken = reading.take()
        assert taken is not None
        assert taken[0] == index
    assert reading.take() is None
    assert reading.is_failed
    assert not reading.is_done
    reading.close()
    assert not reading.is_failed
    assert store.match(keys).num_blocks == 2
    assert store.report().rejected_blocks == 1
    assert save(store, keys) == [keys[2]], "computed again, it is kept again"
    assert read_all(store, keys) == 5
    store.close()


def test_two_readings_share_one_read() -> None:
    disk = FakeDisk()
    keys = _on_disk(disk, keys_of(3))
    store = make_store(8, disk)
    readings = [store.open(keys, name) for name in ("one", "other")]
    assert len(disk.queue) == 3
    disk.run()
    for reading in readings:
        assert [reading.take() is not None for _ in keys] == [True] * 3
        reading.close()
    store.close()


def test_a_prefetch_lands_as_much_as_the_window_and_open_takes_it_over() -> None:
    disk = FakeDisk()
    keys = _on_disk(disk, keys_of(10))
    store = make_store(16, disk, num_ahead=4)
    store.prefetch(keys, "queued")
    assert len(disk.queue) == 4
    disk.run()
    store.poll()
    assert not disk.queue, "the window is full until somebody takes from it"
    reading = store.open(keys, "queued")
    assert [reading.take() is not None for _ in range(5)] == [True] * 4 + [False]
    disk.run()
    while reading.take() is not None:
        disk.run()
    assert reading.is_done
    reading.close()
    assert disk.stats().read == 10, "nothing was read twice"
    assert _tiers(store)["disk"] == (10, 10)
    store.close()


def test_the_window_is_one_for_all_queued_requests() -> None:
    disk = FakeDisk()
    store = make_store(16, disk, num_ahead=4)
    prompts = [_on_disk(disk, keys_of(3, token)) for token in range(5)]
    for number, keys in enumerate(prompts):
        store.prefetch(keys, str(number))
        store.prefetch(keys, str(number))
    assert len(disk.queue) == 4
    disk.run()
    store.forget("0")
    store.poll()
    assert len(disk.queue) == 3, "what the first let go makes room for the next"
    store.close()


def test_a_forgotten_prefetch_leaves_its_blocks_and_no_pins() -> None:
    disk = FakeDisk()
    keys = _on_disk(disk, keys_of(3))
    store = make_store(4, disk)
    store.prefetch(keys, "queued")
    store.forget("queued")
    disk.run()
    store.poll()
    assert store.match(keys).num_host == 3
    flood = [keys_of(1, token)[0] for token in range(50, 58)]
    assert save(store, flood) == flood
    store.close()


def test_prefetches_do_not_hold_up_what_is_needed_now() -> None:
    disk = FakeDisk()
    store = make_store(4, disk, num_ahead=4)
    store.prefetch(_on_disk(disk, keys_of(8)), "queued")
    disk.run()
    keys = _on_disk(disk, keys_of(6, 9))
    reading = store.open(keys, "now")
    count = 0
    for _ in keys:
        disk.run()
        count += reading.take() is not None
    assert count == 6
    reading.close()
    store.close()


def test_without_a_window_nothing_is_prefetched() -> None:
    disk = FakeDisk()
    store = make_store(4, disk, num_ahead=0)
    store.prefetch(_on_disk(disk, keys_of(8)), "queued")
    assert not disk.queue
    store.close()


def test_a_prefetch_of_what_host_memory_has_pins_nothing() -> None:
    disk = FakeDisk()
    store = make_store(2, disk)
    keys = keys_of(2)
    save(store, keys)
    disk.run()
    store.prefetch(keys, "queued")
    flood = [keys_of(1, token)[0] for token in range(50, 58)]
    assert save(store, flood) == flood
    store.close()


def test_heat_goes_to_the_disk_with_the_block() -> None:
    disk = FakeDisk(is_refusing=True)
    store = make_store(8, disk)
    keys = keys_of(2)
    save(store, keys)
    read_all(store, keys)
    read_all(store, keys[:1])
    disk.is_refusing = False
    store.flush(10)
    assert disk.heats == {keys[0]: 2, keys[1]: 1}
    store.close()


def test_an_empty_disk_is_a_disk() -> None:
    disk = FakeDisk()
    store = make_store(4, disk)
    assert [tier.name for tier in store.report().tiers] == ["host", "disk"]
    store.close()
    assert disk.is_closed


def test_a_short_block_is_found_by_its_tokens_and_never_goes_to_the_disk() -> None:
    """Its tokens are known until the next start alone, so there nobody could find it."""
    disk = FakeDisk(is_immediate=True)
    store = make_store(2, disk)
    keys = keys_of(1)
    save(store, keys)
    rest = [7, 8, 9]
    short = short_key(keys[0], rest)
    assert store.put(short) is not None
    store.commit(short, is_short=True)
    store.follow(keys[0], short, rest)
    assert store.successor(keys[0], [7, 8, 5, 5]) == (short, 2)
    assert store.successor(keys[0], [9]) is None
    reading = store.open([*keys, short], "reader", BLOCK_TOKENS + 2)
    assert reading.num_blocks == 2
    reading.close()
    assert {tier.name: tier.hit_tokens for tier in store.report().tiers}["host"] == BLOCK_TOKENS + 2
    for token in range(50, 60):
        save(store, keys_of(1, token))
    assert not store.has(short)
    assert short not in disk.blocks
    assert store.successor(keys[0], rest) is None
    store.close()


def test_blocks_used_without_being_read_count_as_used() -> None:
    disk = FakeDisk(is_immediate=True)
    store = make_store(8, disk)
    keys = keys_of(3)
    save(store, keys)
    _on_disk(disk, keys_of(4))
    store.use(keys_of(4), 4 * BLOCK_TOKENS)
    assert _tiers(store) == {"host": (3, 3), "disk": (4, 1)}
    assert disk.counts.get("read", 0) == 0
    assert disk.touched == keys_of(4)
    for token in range(50, 90):
        save(store, keys_of(1, token))
    assert store.match(keys).num_host == 3, "what was used outlives what was seen once"
    store.close()


def test_a_prefetch_of_blocks_that_vanish_ends_and_lets_the_next_one_on() -> None:
    disk = FakeDisk()
    store = make_store(16, disk, num_ahead=2)
    first, second = (_on_disk(disk, keys_of(4, token)) for token in range(2))
    store.prefetch(first, "first")
    store.prefetch(second, "second")
    del disk.blocks[first[2]], disk.blocks[first[3]]
    disk.run()
    assert read_all(store, first[:2], "first") == 2
    store.poll()
    assert len(disk.queue) == 2, "the second has the window now"
    disk.run()
    store.poll()
    assert store.match(second).num_host == 2
    assert store.report().rejected_blocks == 0
    store.close()


def test_a_prefetch_waits_behind_one_that_vanishes_halfway() -> None:
    disk = FakeDisk()
    store = make_store(16, disk, num_ahead=1)
    first, second = (_on_disk(disk, keys_of(3, token)) for token in range(2))
    store.prefetch(first, "first")
    store.prefetch(second, "second")
    del disk.blocks[first[0]], disk.blocks[first[1]], disk.blocks[first[2]]
    for _ in range(3):
        disk.run()
        store.poll()
    assert store.match(second).num_host == 1
    store.close()


def test_what_is_needed_now_takes_the_room_of_the_newest_prefetch() -> None:
    disk = FakeDisk()
    store = make_store(8, disk, num_ahead=4)
    store.prefetch(_on_disk(disk, keys_of(4)), "queued")
    disk.run()
    store.poll()
    keys = _on_disk(disk, keys_of(6, 9))
    reading = store.open(keys, "now")
    assert len(disk.queue) == 6
    assert store.match(keys_of(4)).num_host == 4, "what had landed stays as long as there is room"
    reading.close()
    store.close()
