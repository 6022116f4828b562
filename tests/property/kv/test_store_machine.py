"""The store under everything at once: bounds hold, bytes are right, what is kept stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.kv_blocks import FakeDisk, block_of, keys_of, make_store, save

if TYPE_CHECKING:
    from terrace_runtime.kv.reading import Reading

_PROMPTS = [keys_of(6, token) for token in range(4)]
# The first blocks of these two are the same.
_PROMPTS.append(_PROMPTS[0][:3] + keys_of(6, 9)[3:])
_prompts = st.sampled_from(range(len(_PROMPTS)))
_names = st.sampled_from("abc")


class StoreMachine(RuleBasedStateMachine):
    """A store of a few blocks, its disk, and those who use them."""

    @initialize(
        num_blocks=st.integers(0, 12),
        num_ahead=st.integers(0, 4),
        max_queue=st.integers(1, 8),
        has_disk=st.booleans(),
    )
    def start(self, num_blocks: int, num_ahead: int, max_queue: int, *, has_disk: bool) -> None:
        self.num_blocks = num_blocks
        self.disk = FakeDisk(max_queue=max_queue)
        self.store = make_store(num_blocks, self.disk if has_disk else None, num_ahead=num_ahead)
        self.readings: list[tuple[list[bytes], Reading, int]] = []
        self.held: dict[str, list[bytes]] = {}
        self.pinned: dict[str, list[bytes]] = {}
        self.saved: set[bytes] = set()

    @rule(prompt=_prompts, count=st.integers(0, 6), is_chained=st.booleans())
    def save(self, prompt: int, count: int, *, is_chained: bool) -> None:
        keys = _PROMPTS[prompt][:count]
        self.saved.update(save(self.store, keys))
        if is_chained:
            self.store.touch(keys)

    @rule(prompt=_prompts)
    def give_up_a_block(self, prompt: int) -> None:
        key = _PROMPTS[prompt][0]
        if self.store.put(key) is not None:
            self.store.discard(key)

    @rule(prompt=_prompts, name=_names)
    def open(self, prompt: int, name: str) -> None:
        keys = _PROMPTS[prompt]
        found = self.store.match(keys)
        reading = self.store.open(keys, name)
        assert reading.num_blocks == found.num_blocks
        self.readings.append((keys, reading, 0))

    @precondition(lambda self: self.readings)
    @rule(number=st.integers(0, 100))
    def take(self, number: int) -> None:
        number %= len(self.readings)
        keys, reading, at = self.readings[number]
        taken = reading.take()
        if taken is None:
            return
        assert taken[0] == at
        assert np.array_equal(taken[1], block_of(keys[at], self.store.block_bytes))
        self.readings[number] = (keys, reading, at + 1)

    @precondition(lambda self: self.readings)
    @rule(number=st.integers(0, 100))
    def close_a_reading(self, number: int) -> None:
        _, reading, _ = self.readings.pop(number % len(self.readings))
        reading.close()

    @rule(prompt=_prompts, name=_names)
    def prefetch(self, prompt: int, name: str) -> None:
        self.store.prefetch(_PROMPTS[prompt], name)

    @rule(name=_names)
    def forget(self, name: str) -> None:
        self.store.forget(name)

    @rule(prompt=_prompts, name=_names)
    def hold(self, prompt: int, name: str) -> None:
        keys = _PROMPTS[prompt]
        self.held.pop(name, None)
        if self.store.hold(keys, name):
            self.held[name] = keys

    @rule(name=_names)
    def release(self, name: str) -> None:
        self.store.release(name)
        self.held.pop(name, None)

    @rule(prompt=_prompts, name=_names)
    def pin(self, prompt: int, name: str) -> None:
        keys = _PROMPTS[prompt]
        self.pinned[name] = keys[: self.store.pin(keys, name)]

    @rule(name=_names)
    def unpin(self, name: str) -> None:
        self.store.unpin(name)
        self.pinned.pop(name, None)

    @rule(count=st.integers(1, 10), seconds=st.integers(0, 2))
    def let_the_disk_work(self, count: int, seconds: int) -> None:
        self.disk.run(count)
        self.disk.clock.now += seconds
        self.store.poll()

    @rule(prompt=_prompts, index=st.integers(0, 5))
    def damage_the_disk(self, prompt: int, index: int) -> None:
        self.disk.corrupt.add(_PROMPTS[prompt][index])

    @rule(prompt=_prompts, index=st.integers(0, 5))
    def lose_a_block_on_disk(self, prompt: int, index: int) -> None:
        self.disk.blocks.pop(_PROMPTS[prompt][index], None)

    @rule(is_refusing=st.booleans(), is_full=st.booleans())
    def fill_the_disk(self, *, is_refusing: bool, is_full: bool) -> None:
        self.disk.is_refusing = is_refusing
        self.disk.is_full = is_full

    @rule()
    def flush(self) -> None:
        self.store.flush(10)

    @invariant()
    def a_match_is_never_longer_than_what_is_stored(self) -> None:
        for keys in _PROMPTS:
            found = self.store.match(keys)
            assert all(self.store.has(key) for key in keys[: found.num_blocks])
            assert found.num_blocks == len(keys) or not self.store.has(keys[found.num_blocks])
            assert set(keys[: found.num_blocks]) <= self.saved
            assert found.num_host + found.num_disk <= found.num_blocks

    @invariant()
    def what_is_kept_stays_in_host_memory(self) -> None:
        for keys in (*self.held.values(), *self.pinned.values()):
            assert self.store.match(keys).num_host == len(keys)

    @invariant()
    def bounds_hold_and_counters_add_up(self) -> None:
        report = self.store.report()
        host = report.tiers[0]
        assert host.used_bytes == host.blocks * self.store.block_bytes
        assert host.used_bytes <= host.limit_bytes == self.num_blocks * self.store.block_bytes
        assert host.spills >= host.blocks - self.disk.counts.get("read", 0)
        assert host.evictions <= host.spills + self.disk.counts.get("read", 0)
        for tier in report.tiers:
            assert tier.hit_tokens == tier.hits * self.store.block_tokens
        kept = {key for keys in self.held.values() for key in keys}
        assert len(kept) <= self.num_blocks // 2
        pinned = {key for keys in self.pinned.values() for key in keys}
        assert len(pinned) <= self.num_blocks // 4

    def teardown(self) -> None:
        """When everybody let go, nothing is pinned and there is room."""
        if not hasattr(self, "store"):
            return
        for _, reading, _ in self.readings:
            reading.close()
        for name in "abc":
            self.store.forget(name)
            self.store.release(name)
            self.store.unpin(name)
        self.disk.is_refusing = self.disk.is_full = False
        self.disk.run()
        self.store.flush(10)
        self.store.poll()
        host = self.store._host
        assert [entry.num_pins for entry in host._entries.values()] == [0] * host.num_residents
        assert host.num_guests == 0
        for number in range(self.num_blocks):
            assert save(self.store, keys_of(1, 1000 + number)), "there is always room"
            self.store.flush(10)
        self.store.close()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(stateful_step_count=40, deadline=None)
