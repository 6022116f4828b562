"""The store of one tier: blocks come back as they were put, and counters tell what happened."""

from __future__ import annotations

import numpy as np
import pytest

from support.kv_blocks import block_of, keys_of, make_store, read_all, save
from terrace_runtime.kv.store import KvStore, Match


def _host(store: KvStore) -> tuple[int, int, int, int]:
    """Blocks, hits, spills and evictions of the host tier."""
    tier = store.report().tiers[0]
    assert tier.name == "host"
    assert tier.used_bytes == tier.blocks * store.block_bytes <= tier.limit_bytes
    assert tier.hit_tokens == tier.hits * store.block_tokens
    return tier.blocks, tier.hits, tier.spills, tier.evictions


def test_blocks_come_back_in_order_and_byte_for_byte() -> None:
    store = make_store(10)
    keys = keys_of(6)
    save(store, keys)
    assert store.match(keys) == Match(num_blocks=6, num_host=6, num_disk=0)
    assert read_all(store, keys) == 6
    store.close()


def test_a_match_ends_at_the_first_block_that_is_missing() -> None:
    store = make_store(10)
    keys = keys_of(6)
    save(store, keys[:2] + keys[3:])
    assert store.match(keys) == Match(num_blocks=2, num_host=2, num_disk=0)
    assert store.match(keys_of(6, 9)).num_blocks == 0
    assert read_all(store, keys) == 2
    store.close()


def test_a_block_is_found_only_once_it_is_filled() -> None:
    store = make_store(10)
    key = keys_of(1)[0]
    assert store.put(key) is not None
    assert not store.has(key)
    assert store.put(key) is None, "somebody is filling it"
    assert read_all(store, [key]) == 0
    store.commit(key)
    assert store.has(key)
    assert store.put(key) is None, "it is here"
    store.close()


def test_a_block_that_could_not_be_filled_leaves_its_room() -> None:
    store = make_store(1)
    first, second = keys_of(2)
    assert store.put(first) is not None
    assert store.put(second) is None, "the only buffer is being filled"
    store.discard(first)
    assert save(store, [second]) == [second]
    assert not store.has(first)
    store.close()


def test_looking_is_no_use_and_reading_is() -> None:
    store = make_store(10)
    keys = keys_of(3)
    save(store, keys)
    for _ in range(5):
        store.match(keys)
    assert _host(store) == (3, 0, 3, 0)
    read_all(store, keys)
    assert _host(store) == (3, 3, 3, 0)
    store.close()


def test_evictions_are_counted() -> None:
    store = make_store(3)
    save(store, keys_of(5))
    assert _host(store) == (3, 0, 5, 2)
    store.close()


def test_what_is_being_read_is_not_evicted() -> None:
    store = make_store(4)
    keys = keys_of(3)
    save(store, keys)
    reading = store.open(keys, "reader")
    others = [keys_of(1, token)[0] for token in range(50, 55)]
    save(store, others)
    taken = 0
    while (block := reading.take()) is not None:
        assert np.array_equal(block[1], block_of(keys[taken], store.block_bytes))
        taken += 1
    assert (taken, reading.is_done, reading.is_failed) == (3, True, False)
    reading.close()
    reading.close()
    assert reading.take() is None
    store.close()


def test_there_is_no_room_while_all_is_pinned_and_nothing_breaks() -> None:
    store = make_store(3)
    keys = keys_of(3)
    save(store, keys)
    reading = store.open(keys, "reader")
    assert store.put(keys_of(1, 9)[0]) is None
    reading.close()
    assert store.put(keys_of(1, 9)[0]) is not None
    store.close()


def test_a_reading_that_is_closed_early_pins_nothing() -> None:
    store = make_store(3)
    keys = keys_of(3)
    save(store, keys)
    reading = store.open(keys, "reader")
    reading.take()
    reading.close()
    others = [keys_of(1, token)[0] for token in range(50, 53)]
    assert save(store, others) == others
    store.close()


def test_parked_blocks_stay_until_they_are_released() -> None:
    store = make_store(8)
    keys = keys_of(4)
    save(store, keys)
    assert store.hold(keys, "parked")
    flood = [keys_of(1, token)[0] for token in range(50, 80)]
    save(store, flood)
    assert store.match(keys).num_blocks == 4
    store.release("parked")
    store.release("parked")
    save(store, [keys_of(1, token)[0] for token in range(80, 110)])
    assert store.match(keys).num_blocks == 0
    store.close()


def test_parked_blocks_take_half_of_the_tier_at_most() -> None:
    store = make_store(8)
    keys = keys_of(6)
    save(store, keys)
    assert not store.hold(keys, "parked")
    save(store, [keys_of(1, token)[0] for token in range(50, 80)])
    assert store.match(keys).num_blocks == 4, "the first half was kept"
    store.close()


def test_sequences_parked_on_one_prefix_count_it_once() -> None:
    store = make_store(8)
    keys = keys_of(4)
    save(store, keys)
    assert store.hold(keys, "one")
    assert store.hold(keys, "other")
    store.release("one")
    save(store, [keys_of(1, token)[0] for token in range(50, 80)])
    assert store.match(keys).num_blocks == 4
    store.close()


def test_a_sequence_whose_blocks_are_gone_cannot_be_held() -> None:
    store = make_store(8)
    assert not store.hold(keys_of(2), "parked")
    assert store.hold([], "parked")
    store.close()


def test_pinned_prefixes_are_bounded_in_bytes_and_stay() -> None:
    store = make_store(8, pinned_bytes=1 << 40)
    assert store.pin(keys_of(3), "system") == 0, "nothing is here yet"
    save(store, keys_of(3))
    assert store.pin(keys_of(3), "system") == 3
    save(store, [keys_of(1, token)[0] for token in range(50, 80)])
    assert store.match(keys_of(3)).num_blocks == 3
    store.unpin("system")
    save(store, [keys_of(1, token)[0] for token in range(80, 110)])
    assert store.match(keys_of(3)).num_blocks == 0
    store.close()
    small = make_store(8, pinned_bytes=2 * store.block_bytes)
    save(small, keys_of(3))
    assert small.pin(keys_of(3), "system") == 2
    assert small.pin(keys_of(3), "system") == 2, "pinning again replaces"
    small.close()


def test_pinning_more_replaces_what_was_pinned() -> None:
    store = make_store(8, pinned_bytes=1 << 40)
    save(store, keys_of(4))
    assert store.pin(keys_of(2), "system") == 2
    assert store.pin(keys_of(4), "system") == 4
    store.unpin("system")
    assert save(store, [keys_of(1, token)[0] for token in range(50, 58)])
    assert store.match(keys_of(4)).num_blocks == 0
    store.close()


@pytest.mark.parametrize("method", ["release", "unpin", "forget"])
def test_a_stranger_has_nothing_to_let_go_of(method: str) -> None:
    store = make_store(2)
    getattr(store, method)("nobody")
    store.close()
