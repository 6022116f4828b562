"""What is used again outlives what was seen once; what is pinned stays."""

from __future__ import annotations

import tracemalloc

import pytest

from support.kv_blocks import keys_of, make_store, read_all, save
from support.waiting import wait_for
from terrace_runtime.kv.arena import Arena


def test_a_full_tier_drops_the_block_that_was_saved_first() -> None:
    store = make_store(4)
    first, *rest = [keys_of(1, token)[0] for token in range(5)]
    save(store, [first, *rest])
    assert not store.has(first)
    assert all(store.has(key) for key in rest)
    store.close()


def test_a_block_used_again_outlives_many_that_were_seen_once() -> None:
    store = make_store(8)
    shared = keys_of(3)
    save(store, shared)
    assert read_all(store, shared) == 3
    for token in range(100, 140):
        save(store, keys_of(1, token))
    assert read_all(store, shared) == 3
    store.close()


def test_blocks_used_long_ago_leave_in_the_end() -> None:
    store = make_store(8)
    old = keys_of(4)
    save(store, old)
    read_all(store, old)
    for token in range(100, 130):
        save(store, keys_of(1, token))
        read_all(store, keys_of(1, token))
    assert not store.has(old[0])
    store.close()


def test_a_prompt_larger_than_the_tier_keeps_its_beginning() -> None:
    store = make_store(8)
    keys = keys_of(20)
    for count in range(20):
        save(store, [keys[count]])
        store.touch(keys[: count + 1])
    assert store.match(keys).num_blocks == 7
    store.close()


def test_the_end_of_a_prompt_that_was_read_leaves_before_its_beginning() -> None:
    store = make_store(6)
    keys = keys_of(4)
    save(store, keys)
    read_all(store, keys)
    for token in range(100, 104):
        save(store, keys_of(1, token))
        read_all(store, keys_of(1, token))
    assert 0 < store.match(keys).num_blocks < 4
    store.close()


def test_a_tier_too_small_for_a_block_holds_none() -> None:
    store = make_store(0)
    assert save(store, keys_of(2)) == []
    assert store.match(keys_of(2)).num_blocks == 0
    assert read_all(store, keys_of(2)) == 0
    store.close()


def test_the_arena_is_touched_ahead_of_use() -> None:
    arena = Arena(15, 1 << 20)
    wait_for("all is touched", lambda: arena.num_untouched == 0, every=0.01)
    assert arena.touched_bytes == 16 << 20
    numbers = {arena.take() for _ in range(15)}
    assert len(numbers) == 15
    assert arena.buffer(numbers.pop()).nbytes == 1 << 20
    arena.close()


def half_touched() -> Arena | None:
    """An arena whose thread ended before its last buffer; None: we were too late to end it."""
    arena = Arena(100, 1 << 20)
    wait_for("some are touched", lambda: arena.num_untouched < 100, every=0.0001)
    arena.close()
    return arena if arena.num_untouched else None


def test_a_touched_buffer_goes_before_an_untouched_one() -> None:
    arena = wait_for("an arena that is half touched", half_touched, every=0)
    assert arena is not None
    untouched = arena.num_untouched
    number = arena.take()
    assert arena.num_untouched == untouched
    arena.give(number)
    assert arena.take() == number, "what was used last is warm in the processor's caches"


@pytest.mark.parametrize("num_bytes", [1 << 60, 1 << 80])
def test_memory_that_cannot_be_had_is_refused_with_its_size_and_the_way_out(num_bytes: int) -> None:
    with pytest.raises(MemoryError, match=r"\d bytes for KV blocks .*: lower spillThreshold"):
        make_store(0, host_bytes=num_bytes)


def test_an_arena_of_many_buffers_costs_nothing_until_they_are_used() -> None:
    count = 1 << 22
    tracemalloc.start()
    arena = Arena(count, 1 << 10)
    arena.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Its thread touches some before it ends, which count as used: a number and its place in a list.
    num_touched = count + 1 - arena.num_untouched
    assert peak < (1 << 20) + 64 * num_touched


def test_every_buffer_can_be_taken_while_the_arena_is_being_touched() -> None:
    for _ in range(20):
        arena = Arena(50, 1 << 16)
        assert len({arena.take() for _ in range(50)}) == 50
        arena.close()
