"""The tiers below the device, as the engine uses them: opened once, asked in tokens.

Owns: building the store, the disk tier and the mover that fits the model, the roots of block keys,
and the report of it all. Does not own: who holds which prefix (``prefix.py``), the tiers (``kv``).
Next: ``prefix.py``.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.contract import CacheReport, TierReport, pod_path
from terrace_runtime.engine.cells import SplitMover, UnifiedMover
from terrace_runtime.engine.checkpoint_cells import CheckpointMover
from terrace_runtime.kv.blob import StateLayout
from terrace_runtime.kv.checkpoints import CheckpointStore
from terrace_runtime.kv.disk import DiskTier
from terrace_runtime.kv.keys import block_keys, root_key, short_key
from terrace_runtime.kv.store import KvStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.cells import CellMover
    from terrace_runtime.kv import BlockDisk

_LOG = logging.getLogger(__name__)
MIN_TOKENS = 8
"""Fewer in all are not worth the way: computing them takes no longer."""
_ROTATION = "LLAMA_ATTN_ROT_DISABLE"
"""llama.cpp turns quantised keys unless this is set, so their bytes depend on it."""


class Tiers:
    """Host and disk tier of one loaded model; all methods on the engine's thread but ``root``."""

    def __init__(
        self,
        backend: Backend,
        config: RuntimeConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_ready: Callable[[], None] = lambda: None,
        disk: BlockDisk | None = None,
    ) -> None:
        """``on_ready`` is called from another thread when blocks came from the disk.

        ``disk`` stands in for the tier of ``config`` where faults are made.
        """
        self.store: KvStore | None = None
        self.checkpoints: CheckpointStore | None = None
        self.mover: CellMover | None = None
        self.block_tokens = config.kv.block_tokens
        self.block_bytes = 0
        self._config = config
        self._build = f"{backend.info.build} rotation={os.environ.get(_ROTATION, '')}"
        self._adapters = {
            one.name: f"{one.name} {one.digest} {one.scale!r}" for one in config.adapters
        }
        self._roots: dict[tuple[str, str], bytes] = {}
        reuse = backend.info.capabilities.reuse
        if not config.kv.host_bytes or reuse == "none":
            return
        if reuse == "checkpoints":
            kv = config.kv
            self.checkpoints = CheckpointStore(kv.checkpoint_count, kv.host_bytes, kv.block_tokens)
            self.mover = CheckpointMover(backend, self.checkpoints, kv.block_tokens)
            return
        layout = _layout(backend)
        if disk is None:
            disk = self._open_disk(layout.block_bytes(config.kv.block_tokens))
        self.store = KvStore(config.kv, layout, disk, clock, on_ready=on_ready)
        self.block_bytes = self.store.block_bytes
        self._make_mover(backend, self.store, layout)

    def relayout(self, backend: Backend) -> None:
        """The backend has cells of the other layout now, all of them empty."""
        assert self.store is not None
        # The old one's staging buffer goes before there is another.
        self.mover = None
        layout = _layout(backend)
        if layout.block_bytes(self.block_tokens) != self.block_bytes:
            raise BackendError("blocks of the two layouts of KV cells differ in size")
        self._make_mover(backend, self.store, layout)

    def _make_mover(self, backend: Backend, store: KvStore, layout: StateLayout) -> None:
        if backend.is_unified:
            self.mover = UnifiedMover(backend, store, layout)
        else:
            self.mover = SplitMover(backend, store, layout, self._config.context_tokens)

    def _open_disk(self, block_bytes: int) -> BlockDisk | None:
        kv = self._config.kv
        if not kv.disk_bytes:
            return None
        # A tier that cannot use its folder holds nothing and says why; the replica serves.
        disk = DiskTier(pod_path(kv.disk_path), kv.disk_bytes, block_bytes, self.root("", ""))
        if disk.problem:
            _LOG.warning("no disk tier for now: %s", disk.problem)
        return disk

    # Asked by prefix.py ---------------------------------------------------------------------------

    def root(self, adapter: str, tenant: str) -> bytes:
        """Root of the block keys of one adapter and, unless they share, one tenant."""
        salt = tenant if self._config.kv.isolation == "tenant" else ""
        found = self._roots.get((adapter, salt))
        if found is None:
            config = self._config
            found = root_key(
                config.model_digest,
                (config.kv_key_type, config.kv_value_type),
                self._build,
                self.block_tokens,
                adapter=self._adapters.get(adapter, adapter),
                salt=salt,
            )
            if len(self._roots) < _MAX_ROOTS:
                self._roots[adapter, salt] = found
        return found

    @property
    def can_save(self) -> bool:
        """The staging buffer is free."""
        return self.mover is None or self.mover.can_save

    def find(self, keys: Sequence[bytes]) -> tuple[int, int, int]:
        """(tokens kept of this prefix, of these on disk alone, of the first in host memory)."""
        block_tokens = self.block_tokens
        if self.checkpoints is not None:
            found = self.checkpoints.find(keys) * block_tokens
            return found, 0, found
        if self.store is None:
            return 0, 0, 0
        match = self.store.match(keys)
        return (
            match.num_blocks * block_tokens,
            match.num_disk * block_tokens,
            match.num_host * block_tokens,
        )

    def worth_restoring(self, stored: int, on_disk: int, in_host: int) -> int:
        """How many of ``stored`` first tokens to restore, because that beats computing them.

        ``on_disk`` of them only the disk has; the first ``in_host`` need no disk.
        """
        if self.store is None:
            return stored
        per_token = self.block_bytes // self.block_tokens
        policy = self.store.policy
        if policy.worth_restoring(stored - on_disk, on_disk, per_token):
            return stored
        return in_host if on_disk and policy.worth_restoring(in_host, 0, per_token) else 0

    def observe_restore(self, num_tokens: int, seconds: float) -> None:
        """So many tokens came back from host memory in so much of the engine's time."""
        if self.store is not None:
            num_bytes = num_tokens * self.block_bytes // self.block_tokens
            self.store.policy.observe_restore(num_bytes, seconds)

    def restore_seconds(self, num_tokens: int) -> float:
        """What bringing so many tokens back from host memory is expected to take; 0: unknown."""
        rate = self.store.policy.restore_bytes_per_second if self.store is not None else 0.0
        return num_tokens * self.block_bytes / self.block_tokens / rate if rate else 0.0

    def observe_prefill(self, num_tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in a step of their own."""
        if self.store is not None:
            self.store.policy.observe_prefill(num_tokens, seconds)

    def save(
        self, slot: int, root: bytes, tokens: Sequence[int], known: Sequence[bytes]
    ) -> list[bytes]:
        """Keep what no tier has of a slot's cells, which hold ``tokens``; the keys of all blocks.

        ``known`` are the first of these, without the last one where that is short.
        """
        size = self.block_tokens
        keys = block_keys(root, tokens, size, known)
        if self.store is None:
            if self.mover is not None:
                self.mover.save(slot, keys, len(tokens))
            return keys
        parents = [root, *keys]
        rest = tokens[len(keys) * size :]
        if rest and len(tokens) >= MIN_TOKENS:
            keys.append(short_key(parents[-1], rest))
        missing = [index for index, key in enumerate(keys) if not self.store.has(key)]
        assert self.mover is not None
        self.mover.save(slot, keys, len(tokens))
        for index in missing:
            block = tokens[index * size : (index + 1) * size]
            self.store.follow(parents[index], keys[index], block)
        return keys

    def successor(self, parent: bytes, tokens: Sequence[int]) -> tuple[bytes, int] | None:
        """(key, count) of a block after ``parent`` that begins with ``count`` of ``tokens``."""
        return self.store.successor(parent, tokens) if self.store is not None else None

    def can_hold(self, num_tokens: int) -> bool:
        """A parked sequence of so many tokens would be kept whole."""
        num_blocks = -(-num_tokens // self.block_tokens)
        return self.store is not None and self.store.can_hold(num_blocks)

    def hold(self, keys: Sequence[bytes], owner: str) -> None:
        """Keep a parked sequence's blocks until ``release``, as far as there is room."""
        if self.store is not None:
            self.store.hold(keys, owner)

    def release(self, owner: str) -> None:
        """Nothing is held or read ahead for ``owner`` any more."""
        if self.store is not None:
            self.store.release(owner)
            self.store.forget(owner)

    def copy(self, source: int, target: int, num_tokens: int) -> bool:
        """Give an empty slot the first tokens of a running one; False: it stays empty."""
        return self.mover is not None and self.mover.copy(source, target, num_tokens)

    def poll(self) -> None:
        """A step begins: take in what the disk's threads have done, and give them more to do."""
        if self.mover is not None:
            self.mover.forget_copy()
        if self.store is not None:
            self.store.poll()

    @property
    def is_writing(self) -> bool:
        """Blocks are on their way to the disk."""
        return self.store is not None and self.store.is_writing

    def report(self) -> CacheReport:
        """Tiers with bytes, hits and failures; the device's part is ``prefix.py``'s."""
        if self.store is not None:
            return self.store.report()
        if self.checkpoints is not None:
            kept = self.checkpoints
            host = TierReport(
                name="host",
                used_bytes=kept.used_bytes,
                limit_bytes=kept.max_bytes,
                blocks=len(kept),
                hits=kept.counters.hits,
                spills=kept.counters.saves,
                evictions=kept.counters.evictions,
            )
            return CacheReport(reuse="checkpoints", tiers=(host,))
        return CacheReport()

    def close(self, timeout_s: float) -> None:
        """Write what is queued for the disk within ``timeout_s``, and stop."""
        if self.store is not None:
            self.store.flush(timeout_s)
            self.store.close()


_MAX_ROOTS = 4096


def _layout(backend: Backend) -> StateLayout:
    """Learn how a state looks from one real token."""
    backend.batch.clear()
    backend.batch.extend([0], 0, 0, outputs=1)
    if backend.decode() != DECODE_OK:
        raise BackendError("llama.cpp cannot decode one token")
    state = np.zeros(backend.state_size(0), np.uint8)
    written = backend.state_get(0, state)
    backend.seq_rm(0)
    backend.batch.clear()
    try:
        return StateLayout.read(state[:written])
    except ValueError as error:
        raise BackendError(f"llama.cpp's sequence state is not the known one: {error}") from error
