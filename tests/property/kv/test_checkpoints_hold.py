"""Checkpoints under any order of use: the bounds hold and a state is the one that was saved."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.kv.checkpoints import CheckpointStore, next_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 8
_KEYS = st.integers(0, 9)


def copy(content: bytes, buffer: NDArray[np.uint8]) -> int:
    buffer[:] = np.frombuffer(content, np.uint8)
    return len(content)


@given(
    max_count=st.integers(0, 5),
    max_bytes=st.integers(0, 300),
    uses=st.lists(st.tuples(st.booleans(), _KEYS, st.integers(1, 120)), max_size=60),
)
def test_a_store_keeps_its_bounds_and_gives_back_what_it_got(
    max_count: int, max_bytes: int, uses: list[tuple[bool, int, int]]
) -> None:
    store = CheckpointStore(max_count, max_bytes, BLOCK)
    written: dict[bytes, bytes] = {}
    for is_save, number, num_bytes in uses:
        key = bytes([number])
        if is_save and not store.has(key):
            content = np.random.default_rng(num_bytes).bytes(num_bytes)
            if store.save(key, BLOCK, num_bytes, partial(copy, content)):
                written[key] = content
        elif store.has(key):
            assert store.load(key).tobytes() == written[key]
        assert len(store) <= max_count
        assert store.used_bytes <= max_bytes
        held = [bytes([n]) for n in range(10) if store.has(bytes([n]))]
        assert len(held) == len(store)
        assert all(store.find([b"?", one, b"!"]) == 2 for one in held)


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 200), st.integers(1, 64))
def test_stops_are_whole_blocks_that_leave_something_to_compute(
    num_computed: int, num_tokens: int, interval: int, block: int
) -> None:
    stops = []
    at = num_computed
    while (stop := next_checkpoint(at, num_tokens, interval, block)) is not None:
        assert at < stop < num_tokens
        assert stop % block == 0
        stops.append(stop)
        at = stop
    if num_computed < (num_tokens - 1) // block * block:
        assert stops[-1] == (num_tokens - 1) // block * block
        step = max(block, interval // block * block)
        assert all(b - a <= step for a, b in pairwise(stops))
    else:
        assert not stops
