"""llama.cpp's own cells, saved as blocks and put back elsewhere: the model does not notice."""

from __future__ import annotations

import contextlib
import time
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.engine_builders import Conversation, conversations, runtime_config
from support.kv_blocks import ROOT
from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract.config import KvTiers
from terrace_runtime.kv.blob import StateLayout
from terrace_runtime.kv.disk import DiskTier
from terrace_runtime.kv.keys import block_keys
from terrace_runtime.kv.store import KvStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_BLOCK = 16
_FROM, _TO = 1, 2


def _needles() -> list[Conversation]:
    """Two whose answer lies far back, in prompts of some hundred and 1,500 tokens."""

    def length(one: Conversation) -> int:
        return sum(len(part.text) for part in one.prompt)

    longest = sorted(conversations(), key=length)
    return [longest[-8], longest[-1]]


def _tokens(backend: LlamaBackend, conversation: Conversation) -> list[int]:
    return [
        token
        for part in conversation.prompt
        for token in backend.tokenize(part.text, special=part.special, add_bos=False)
    ]


def _compute(backend: LlamaBackend, slot: int, tokens: list[int], start: int) -> None:
    """Evaluate tokens from ``start`` on."""
    capacity = backend.batch.capacity
    for at in range(start, len(tokens), capacity):
        backend.batch.clear()
        backend.batch.extend(tokens[at : at + capacity], slot, at, outputs=1)
        assert backend.decode() == DECODE_OK


def _answer(backend: LlamaBackend, slot: int, tokens: list[int], start: int) -> str:
    """Go on greedily after ``tokens``, of which the slot holds the first ``start``."""
    info, told = backend.info, list(tokens)
    text = b""
    while len(told) < len(tokens) + 120:
        _compute(backend, slot, told, start)
        start = len(told)
        token = int(backend.logits()[-1].argmax())
        if token in info.eog:
            break
        told.append(token)
        text += info.pieces[token]
    return text.decode()


def _save(backend: LlamaBackend, store: KvStore, slot: int, tokens: list[int]) -> StateLayout:
    state = np.zeros(backend.state_size(slot), np.uint8)
    assert backend.state_get(slot, state) == state.nbytes
    layout = StateLayout.read(state)
    assert layout.state_bytes(len(tokens)) == state.nbytes
    for index, key in enumerate(block_keys(ROOT, tokens, _BLOCK)):
        block = store.put(key)
        assert block is not None
        layout.cut(state, len(tokens), index * _BLOCK, block, _BLOCK)
        store.commit(key)
    return layout


def _joined(
    store: KvStore, layout: StateLayout, tokens: list[int], ready: Event | None = None
) -> NDArray[np.uint8]:
    """The state of all full blocks; waits on ``ready`` for those that come from the disk."""
    keys = block_keys(ROOT, tokens, _BLOCK)
    count = len(keys) * _BLOCK
    state = np.zeros(layout.state_bytes(count), np.uint8)
    layout.begin(state, count)
    reading = store.open(keys, "reader")
    while not reading.is_done:
        if ready is not None:
            ready.clear()
        taken = reading.take()
        if taken is None:
            assert not reading.is_failed
            assert ready is not None
            assert ready.wait(30)
            continue
        layout.join(state, count, taken[0] * _BLOCK, taken[1], _BLOCK)
    reading.close()
    return state


def _layout(backend: LlamaBackend) -> StateLayout:
    """Learned from one token."""
    _compute(backend, 0, [0], 0)
    state = np.zeros(backend.state_size(0), np.uint8)
    backend.state_get(0, state)
    assert backend.seq_rm(0)
    return StateLayout.read(state)


def _store(backend: LlamaBackend) -> KvStore:
    tiers = KvTiers(block_tokens=_BLOCK, host_bytes=64 << 20)
    return KvStore(tiers, _layout(backend), None, time.monotonic)


def _store_on(folder: Path, layout: StateLayout, ready: Event) -> KvStore:
    size = layout.block_bytes(_BLOCK)
    tiers = KvTiers(block_tokens=_BLOCK, host_bytes=64 << 20, prefetch_bytes=8 * size)
    disk = DiskTier(folder, 64 << 20, size, ROOT)
    return KvStore(tiers, layout, disk, time.monotonic, on_ready=ready.set)


def _backend(**changes: Any) -> LlamaBackend:
    backend = LlamaBackend()
    backend.load(runtime_config(context_tokens=2048, batch_tokens=512, threads=2, **changes))
    return backend


@pytest.fixture(scope="module", params=[False, True], ids=["split", "unified"])
def backend(request: pytest.FixtureRequest) -> Iterator[LlamaBackend]:
    """One backend per layout, its slots empty before and after each test."""
    backend = _backend(kv_unified=request.param)
    yield backend
    backend.close()


@pytest.fixture
def store(backend: LlamaBackend) -> Iterator[KvStore]:
    store = _store(backend)
    yield store
    store.close()
    for slot in range(4):
        backend.seq_rm(slot)


def _check_needle(backend: LlamaBackend, store: KvStore, case: Conversation) -> None:
    tokens = _tokens(backend, case)
    _compute(backend, _FROM, tokens, 0)
    layout = _save(backend, store, _FROM, tokens)
    assert backend.seq_rm(_FROM)
    assert backend.state_set(_TO, _joined(store, layout, tokens))
    restored = len(tokens) // _BLOCK * _BLOCK
    assert backend.seq_pos_max(_TO) == restored - 1
    assert _answer(backend, _TO, tokens, restored) == case.answer


def test_needles_are_found_in_prompts_that_came_back_from_blocks(
    backend: LlamaBackend, store: KvStore
) -> None:
    for case in _needles():
        _check_needle(backend, store, case)
        backend.seq_rm(_TO)


@pytest.mark.parametrize("kv_unified", [False, True], ids=["split", "unified"])
@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_quantised_cells_come_back_as_well(kv_type: str, kv_unified: bool) -> None:  # noqa: FBT001 - a parameter
    backend = _backend(kv_key_type=kv_type, kv_value_type=kv_type, kv_unified=kv_unified)
    store = _store(backend)
    _check_needle(backend, store, _needles()[0])
    store.close()
    backend.close()


def test_keys_and_values_of_two_types_come_back_as_well() -> None:
    backend = _backend(kv_key_type="q8_0", kv_value_type="q4_0")
    store = _store(backend)
    _check_needle(backend, store, _needles()[0])
    store.close()
    backend.close()


def test_a_needle_is_found_after_a_restart_from_disk(backend: LlamaBackend, tmp_path: Path) -> None:
    case, layout, ready = _needles()[0], _layout(backend), Event()
    tokens = _tokens(backend, case)
    _compute(backend, _FROM, tokens, 0)
    first = _store_on(tmp_path, layout, ready)
    _save(backend, first, _FROM, tokens)
    first.flush(60)
    first.close()
    backend.seq_rm(_FROM)
    second = _store_on(tmp_path, layout, ready)
    assert second.match(block_keys(ROOT, tokens, _BLOCK)).num_disk == len(tokens) // _BLOCK
    assert backend.state_set(_TO, _joined(second, layout, tokens, ready))
    second.close()
    assert _answer(backend, _TO, tokens, len(tokens) // _BLOCK * _BLOCK) == case.answer
    backend.seq_rm(_TO)


def test_cells_scattered_among_those_of_others_give_the_same_blocks(
    backend: LlamaBackend, store: KvStore
) -> None:
    case = _needles()[0]
    tokens = _tokens(backend, case)
    _fill_gaps(backend, tokens)
    assert backend.scratch is None or not _are_in_order(backend, _FROM, len(tokens))
    layout = _save(backend, store, _FROM, tokens)
    for slot in range(4):
        backend.seq_rm(slot)
    assert backend.state_set(_TO, _joined(store, layout, tokens))
    restored = len(tokens) // _BLOCK * _BLOCK
    assert _answer(backend, _TO, tokens, restored) == case.answer


def _fill_gaps(backend: LlamaBackend, tokens: list[int]) -> None:
    """Compute a prompt in the order of its tokens, into cells that others left in any order."""
    chunk = len(tokens) // 8
    for slot, count in ((0, 3 * chunk), (3, 10 * chunk)):
        _compute(backend, slot, [5] * count, 0)
    _compute(backend, _FROM, tokens[:chunk], 0)
    backend.seq_rm(0)
    _compute(backend, _FROM, tokens[: 6 * chunk], chunk)
    backend.seq_rm(3)
    _compute(backend, _FROM, tokens, 6 * chunk)


def _are_in_order(backend: LlamaBackend, slot: int, num_tokens: int) -> bool:
    """Whether a slot's cells lie in the order of their positions (unified KV)."""
    state = np.zeros(backend.state_size(slot), np.uint8)
    backend.state_get(slot, state)
    positions = np.frombuffer(state, "<i4", 3 * num_tokens, 16)[::3]
    return bool((np.diff(positions) > 0).all())


def test_a_block_cut_by_way_of_the_scratch_sequence_is_the_same(
    backend: LlamaBackend, store: KvStore
) -> None:
    scratch = backend.scratch
    if scratch is None:
        with pytest.raises(BackendError, match="split"):
            backend.seq_cp(_FROM, _TO, 0, _BLOCK)
        return
    tokens = list(range(100, 100 + 4 * _BLOCK))
    _compute(backend, _FROM, tokens, 0)
    layout = _save(backend, store, _FROM, tokens)
    backend.seq_cp(_FROM, scratch, 2 * _BLOCK, 3 * _BLOCK)
    state = np.zeros(layout.state_bytes(_BLOCK), np.uint8)
    assert backend.state_get(scratch, state) == state.nbytes
    backend.seq_rm(scratch)
    block = np.zeros(store.block_bytes, np.uint8)
    layout.cut(state, _BLOCK, 0, block, _BLOCK, first_position=2 * _BLOCK)
    reading = store.open(block_keys(ROOT, tokens, _BLOCK), "reader")
    blocks = [taken[1].copy() for _ in range(3) if (taken := reading.take()) is not None]
    reading.close()
    assert np.array_equal(block, blocks[2])


def test_a_damaged_header_is_refused_and_the_backend_lives(
    backend: LlamaBackend, store: KvStore
) -> None:
    tokens = list(range(100, 100 + 2 * _BLOCK))
    _compute(backend, _FROM, tokens, 0)
    layout = _save(backend, store, _FROM, tokens)
    state = _joined(store, layout, tokens)
    layers_at = 12 + 4 + 12 * len(tokens)
    for length in (0, 1, 11, 12, 15, 16, layers_at, layers_at + 8, state.nbytes // 2):
        _check_refused(backend, layout, state[:length].copy())
    for at in (*range(4), *range(8, 16), *range(layers_at + 1, layers_at + 20)):
        for bit in range(8):
            damaged = state.copy()
            damaged[at] ^= 1 << bit
            _check_refused(backend, layout, damaged)
    assert backend.state_set(_TO, state)
    _compute(backend, _TO, [*tokens, 7], len(tokens))
    assert np.isfinite(backend.logits()).all()


def _check_refused(backend: LlamaBackend, layout: StateLayout, state: NDArray[np.uint8]) -> None:
    with contextlib.suppress(ValueError):
        assert StateLayout.read(state) != layout
    backend.state_set(_TO, state)
    assert backend.seq_pos_max(_TO) == -1, "llama.cpp took it as well as it stands"
