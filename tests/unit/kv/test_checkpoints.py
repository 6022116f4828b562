"""States of whole sequences: where they are taken, how they are found, what they may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from terrace_runtime.kv.checkpoints import CheckpointStore, next_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def keep(store: CheckpointStore, key: bytes, value: int, num_bytes: int = 100) -> bool:
    def fill(buffer: NDArray[np.uint8]) -> int:
        buffer[:] = value
        return buffer.nbytes

    return store.save(key, 32, num_bytes, fill)


@pytest.mark.parametrize(
    ("num_computed", "num_tokens", "stop"),
    [
        (0, 2000, 512),
        (512, 2000, 1024),
        (700, 2000, 1024),
        (1536, 2000, 1984),
        (1984, 2000, None),
        (0, 33, 32),
        (0, 32, None),
        (0, 1, None),
        (0, 513, 512),
        (0, 545, 512),
        (512, 545, 544),
    ],
)
def test_a_prompt_stops_at_intervals_and_at_its_last_whole_block(
    num_computed: int, num_tokens: int, stop: int | None
) -> None:
    assert next_checkpoint(num_computed, num_tokens, 512, 32) == stop


def test_an_interval_that_is_no_multiple_of_the_block_is_rounded_to_blocks() -> None:
    assert next_checkpoint(0, 2000, 100, 32) == 96
    assert next_checkpoint(0, 2000, 16, 32) == 32


def test_the_deepest_state_of_a_prefix_is_found() -> None:
    store = CheckpointStore(4, 1000, 32)
    assert keep(store, b"b", 1)
    assert keep(store, b"d", 2)
    assert store.find([b"a", b"b", b"c"]) == 2
    assert store.find([b"a", b"b", b"c", b"d", b"e"]) == 4
    assert store.find([b"x"]) == 0
    assert store.find([]) == 0
    assert store.load(b"d").tolist() == [2] * 100


def test_the_least_recently_used_state_goes_first_and_its_buffer_serves_again() -> None:
    store = CheckpointStore(2, 1000, 32)
    keep(store, b"a", 1)
    keep(store, b"b", 2)
    address = store.load(b"b").ctypes.data
    store.load(b"a")
    keep(store, b"c", 3, num_bytes=90)
    assert not store.has(b"b")
    assert store.load(b"c").ctypes.data == address
    assert store.load(b"c").tolist() == [3] * 90
    assert store.load(b"a").tolist() == [1] * 100
    assert store.counters.evictions == 1


def test_states_fit_into_their_bytes_and_one_that_cannot_is_refused() -> None:
    store = CheckpointStore(10, 250, 32)
    for key in (b"a", b"b", b"c"):
        assert keep(store, key, key[0])
    assert (len(store), store.used_bytes) == (2, 200)
    assert not keep(store, b"d", 4, num_bytes=251)
    assert (len(store), store.counters.refusals) == (2, 1)
    assert keep(store, b"e", 5, num_bytes=250)
    assert (len(store), store.used_bytes) == (1, 250)


def test_nothing_is_kept_where_nothing_may_be() -> None:
    assert not keep(CheckpointStore(0, 1000, 32), b"a", 1)
    assert not keep(CheckpointStore(4, 0, 32), b"a", 1)


def test_a_copy_that_failed_leaves_nothing() -> None:
    store = CheckpointStore(4, 1000, 32)
    assert not store.save(b"a", 32, 100, lambda _: 0)
    assert (store.find([b"a"]), store.used_bytes) == (0, 0)


def test_a_state_that_was_refused_is_forgotten() -> None:
    store = CheckpointStore(4, 1000, 32)
    keep(store, b"a", 1)
    store.drop(b"a")
    store.drop(b"a")
    assert (store.find([b"a"]), store.used_bytes) == (0, 0)


def test_a_state_that_is_held_already_is_not_copied_again() -> None:
    store = CheckpointStore(2, 1000, 32)
    keep(store, b"a", 1)
    keep(store, b"b", 2)
    assert keep(store, b"a", 9)
    assert store.load(b"a").tolist() == [1] * 100
    assert store.counters.saves == 2
