"""No bytes make the segment format raise, and no changed byte goes unnoticed."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from support.kv_disk import block_of, key_of
from terrace_runtime.kv.disk import format as layout
from terrace_runtime.kv.disk.budget import MAX_BLOCKS, MAX_SEGMENT_BYTES, MIB, make_budget

BLOCK_BYTES = 96
BLOCK = block_of(1, BLOCK_BYTES)
KEY = key_of(1)
HEAD = layout.encode_head(7, BLOCK_BYTES, layout.fingerprint_digest(b"a model"))
SEED = layout.head_seed(HEAD)
RECORD = layout.encode_record(SEED, KEY, BLOCK, 3)
ENTRIES = [(key_of(number), number) for number in range(5)]
FOOTER = layout.encode_footer(SEED, ENTRIES)
flips = st.integers(1, 255)


def flipped(data: bytes, at: int, flip: int) -> bytes:
    changed = bytearray(data)
    changed[at % len(data)] ^= flip
    return bytes(changed)


@given(st.integers(0, 2**47), st.integers(0, 2**63), st.binary(max_size=80))
def test_a_head_says_what_was_put_in(serial: int, block_bytes: int, fingerprint: bytes) -> None:
    digest = layout.fingerprint_digest(fingerprint)
    head = layout.decode_head(layout.encode_head(serial, block_bytes, digest))
    assert head is not None
    assert (head.serial, head.block_bytes, head.fingerprint) == (serial, block_bytes, digest)


@given(st.integers(0), flips)
def test_a_changed_head_is_refused(at: int, flip: int) -> None:
    assert layout.decode_head(flipped(HEAD, at, flip)) is None


@given(st.integers(0), flips)
def test_a_changed_record_is_refused(at: int, flip: int) -> None:
    changed = flipped(RECORD + BLOCK.tobytes(), at, flip)
    head, block = changed[: len(RECORD)], np.frombuffer(changed[len(RECORD) :], np.uint8)
    assert layout.is_sound(SEED, KEY, RECORD, BLOCK)
    assert not layout.is_sound(SEED, KEY, head, block)


@given(st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32))
def test_a_record_of_another_segment_or_key_is_refused(seed: int, key: bytes) -> None:
    assert layout.is_sound(seed, KEY, RECORD, BLOCK) == (seed == SEED)
    assert not layout.is_sound(SEED, key, RECORD, BLOCK)


@given(st.integers(0), flips)
def test_a_changed_footer_is_refused(at: int, flip: int) -> None:
    file_bytes = layout.closed_bytes(len(ENTRIES), BLOCK_BYTES)
    changed = flipped(FOOTER, at, flip)
    count = layout.count_records(SEED, changed[-layout.TRAILER_BYTES :], file_bytes, BLOCK_BYTES)
    assert count is None or layout.decode_footer(SEED, changed) is None
    assert layout.decode_footer(SEED, FOOTER) == ENTRIES


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1), st.integers(0, 2**64))
@example(b"", 0, 0)
@example(b"\xff" * 128, 0, 2**63)
def test_foreign_bytes_never_raise(data: bytes, seed: int, size: int) -> None:
    assert layout.decode_head(data) is None
    assert layout.decode_record(seed, data, size) is None
    assert layout.count_records(seed, data, size, BLOCK_BYTES) is None
    layout.decode_footer(seed, data)


@given(st.integers(0, 2**42), st.integers(1, 32 * MIB))
def test_a_budget_leaves_room_for_what_is_carried_over(limit_bytes: int, block_bytes: int) -> None:
    budget = make_budget(limit_bytes, block_bytes)
    assert budget.limit_bytes <= limit_bytes
    assert budget.limit_bytes // layout.record_bytes(block_bytes) <= 2 * MAX_BLOCKS
    assert budget.slots == 1 or budget.charge(budget.slots) <= MAX_SEGMENT_BYTES
    assert budget.slots == 1 or budget.charge(budget.slots) <= limit_bytes // 8
    # At the allowance, all that one eviction carries over still fits, in two segments at worst.
    carried = budget.charge(budget.carry_slots) + budget.charge(0)
    assert budget.carry_slots == 0 or carried <= budget.headroom_bytes
    allowance = budget.allowance(0, 2**62, 2**62)
    assert budget.slots == 1 or allowance >= 2 * budget.charge(budget.slots)
