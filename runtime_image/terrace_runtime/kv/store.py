"""KV blocks by key over host memory and disk: what the engine asks, on its own thread only.

Owns: matching, putting and reading blocks, parked and pinned ones, and the counters of both tiers.
Does not own: keys (``keys.py``), states (``blob.py``), when to save or to restore
(``engine.prefix``). Nothing here waits for the disk but ``flush`` and ``close``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace_runtime.contract import CacheReport, TierReport
from terrace_runtime.kv.arena import Arena
from terrace_runtime.kv.host_tier import HostTier
from terrace_runtime.kv.policy import RestorePolicy
from terrace_runtime.kv.reading import Landings, Reading
from terrace_runtime.kv.reserve import Reserve
from terrace_runtime.kv.spill import WriteBehind
from terrace_runtime.kv.successors import Successors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.contract import KvTiers
    from terrace_runtime.kv import BlockDisk
    from terrace_runtime.kv.blob import StateLayout
    from terrace_runtime.kv.host_tier import Entry

_MAX_PARENTS = 8192
"""Blocks whose successors are known: about 5 MB."""
_NEEDED_NOW = 2
"""Landing buffers that prefetches leave free, so that they never hold up a restore."""


@dataclass(frozen=True, slots=True)
class Match:
    """The longest run of a prompt's first blocks that the tiers hold."""

    num_blocks: int
    num_host: int
    """Blocks before the first one that only the disk has."""
    num_disk: int
    """Blocks of the run that only the disk has."""


class KvStore:
    """The host tier and, where there is one, the disk tier behind it."""

    def __init__(
        self,
        config: KvTiers,
        layout: StateLayout,
        disk: BlockDisk | None,
        clock: Callable[[], float],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Reserve the host tier; MemoryError when the system refuses so much address space.

        ``on_ready`` wakes the engine from the disk's threads: a block landed, or more can be
        written. The store closes ``disk``.
        """
        self.block_tokens = config.block_tokens
        self.block_bytes = layout.block_bytes(config.block_tokens)
        max_blocks = config.host_bytes // self.block_bytes
        max_ahead = _max_ahead(config.prefetch_bytes // self.block_bytes)
        max_guests = 0 if disk is None else max_ahead + _NEEDED_NOW
        self.policy = RestorePolicy(clock, self._disk_rate)
        self._disk = disk
        self._arena = Arena(max_blocks + max_guests, self.block_bytes)
        self._host = HostTier(self._arena, max_blocks, max_guests, self._evicted)
        self._spill = None
        if disk is not None:
            self._spill = WriteBehind(self._host, disk, clock, on_ready)
        self._landings = Landings(self._host, disk, max_ahead, on_ready, clock)
        self._prefetches: dict[str, Reading] = {}
        self._held = Reserve(self._host, max_blocks // 2)
        self._pinned = Reserve(self._host, min(config.pinned_bytes // self.block_bytes, max_blocks))
        self._filling: dict[bytes, Entry] = {}
        self._successors = Successors(min(max(max_blocks, 1), _MAX_PARENTS))
        self._num_spills = self._num_host_hits = self._num_disk_hits = 0
        self._host_hit_tokens = self._disk_hit_tokens = 0
        self._clock = clock

    @property
    def touched_bytes(self) -> int:
        """Memory that blocks take by now, whether one lies there or not."""
        return self._arena.touched_bytes

    # Looking --------------------------------------------------------------------------------------

    def has(self, key: bytes) -> bool:
        """It is in host memory or on disk."""
        return self._host.is_ready(key) or (self._disk is not None and self._disk.has(key))

    def match(self, keys: Sequence[bytes]) -> Match:
        """How many leading blocks are in host memory or on disk; no use is counted.

        A disk that hangs has none.
        """
        num_blocks = num_disk = 0
        num_host: int | None = None
        is_ready = self._host.is_ready
        disk = None if self._landings.is_stalled else self._disk
        on_disk = _nowhere if disk is None else disk.has
        for key in keys:
            if not is_ready(key):
                if not on_disk(key):
                    break
                num_disk += 1
                if num_host is None:
                    num_host = num_blocks
            num_blocks += 1
        return Match(num_blocks, num_blocks if num_host is None else num_host, num_disk)

    def successor(self, parent: bytes, tokens: Sequence[int]) -> tuple[bytes, int] | None:
        """(key, count) of a block in host memory whose first ``count`` tokens go on as ``tokens``.

        ``parent`` is the key before ``tokens``; None: no block that is known goes on like that.
        """
        return self._successors.best(parent, tokens, self._host.is_ready)

    # Saving ---------------------------------------------------------------------------------------

    def put(self, key: bytes) -> NDArray[np.uint8] | None:
        """A buffer to fill for a new block, then ``commit``; None: it is here, or all is pinned."""
        self.poll()
        if self._host.find(key) is not None:
            return None
        entry = self._host.add(key)
        if entry is None:
            return None
        self._filling[key] = entry
        return self._host.buffer(entry)

    def commit(self, key: bytes, *, is_short: bool = False) -> None:
        """The buffer is filled: it can be found from now on, and goes to the disk behind.

        One that ``is_short`` stays here: only ``successor`` finds it, which forgets with a restart.
        """
        entry = self._filling.pop(key)
        entry.is_ready = True
        self._host.unpin(entry)
        self._num_spills += 1
        if self._spill is not None and not is_short:
            self._spill.add(key)

    def follow(self, parent: bytes, key: bytes, tokens: Sequence[int]) -> None:
        """Remember for ``successor`` which ``tokens`` a block holds."""
        self._successors.add(parent, key, tokens)

    def discard(self, key: bytes) -> None:
        """The buffer could not be filled."""
        self._host.drop(self._filling.pop(key))

    def touch(self, keys: Sequence[bytes]) -> None:
        """These are blocks of one sequence, first to last: the last one leaves first.

        Call it after each slice of blocks saved. It counts as no use.
        """
        self._host.touch(reversed(keys), is_use=False)

    def use(self, keys: Sequence[bytes], num_tokens: int) -> None:
        """Count a use of blocks that were not read again: a copy of their bytes was at hand."""
        self._count_hits(keys, num_tokens)
        self._host.touch(reversed(keys), is_use=True)
        if self._disk is not None:
            self._disk.touch(keys)

    # Reading --------------------------------------------------------------------------------------

    def open(self, keys: Sequence[bytes], owner: str, num_tokens: int = 0) -> Reading:
        """Read the blocks that ``match`` finds; takes over what ``owner`` had prefetched.

        ``num_tokens`` of them are wanted; 0: all.
        """
        self.poll()
        found = self.match(keys)
        run = keys[: found.num_blocks]
        self._count_hits(run, num_tokens or len(run) * self.block_tokens)
        if self._disk is not None:
            self._disk.touch(run)
        reading = Reading(run, self._host, self._landings, is_ahead=False)
        self.forget(owner)
        return reading

    def prefetch(self, keys: Sequence[bytes], owner: str) -> None:
        """Land what only the disk has for a queued request, within the window of all of them."""
        if self._disk is None or owner in self._prefetches:
            return
        found = self.match(keys)
        if found.num_disk:
            run = keys[: found.num_blocks]
            self._prefetches[owner] = Reading(run, self._host, self._landings, is_ahead=True)

    def forget(self, owner: str) -> None:
        """Let go of what was prefetched for ``owner``; a stranger is a no-op."""
        reading = self._prefetches.pop(owner, None)
        if reading is not None:
            reading.close()

    def poll(self) -> None:
        """Take in what the disk's threads have done; cheap, and called by everything that waits."""
        self._landings.poll()
        if self._spill is not None:
            self._spill.poll()

    # Keeping --------------------------------------------------------------------------------------

    def hold(self, keys: Sequence[bytes], owner: str) -> bool:
        """Keep a parked sequence's blocks in host memory; False: not all of them.

        All parked sequences together keep at most half of the host tier.
        """
        return self._held.keep(keys, owner) == len(keys)

    def can_hold(self, num_blocks: int) -> bool:
        """``hold`` would keep so many more."""
        return self._held.has_room(num_blocks)

    def release(self, owner: str) -> None:
        """Undo ``hold``; a stranger is a no-op."""
        self._held.release(owner)

    def pin(self, keys: Sequence[bytes], owner: str) -> int:
        """Keep a prefix in host memory; how many of its first blocks there was room for."""
        return self._pinned.keep(keys, owner)

    def unpin(self, owner: str) -> None:
        """Undo ``pin``; a stranger is a no-op."""
        self._pinned.release(owner)

    @property
    def is_writing(self) -> bool:
        """Blocks are on their way to the disk."""
        return self._spill is not None and self._spill.num_pending > 0

    # Ending and telling ---------------------------------------------------------------------------

    def flush(self, timeout_s: float) -> None:
        """Wait until what is to be written is on disk, or refused, or for so long."""
        if self._disk is None or self._spill is None:
            return
        deadline = self._clock() + timeout_s
        num_before = self._spill.num_pending + 1
        while 0 < self._spill.num_pending < num_before and self._clock() < deadline:
            num_before = self._spill.num_pending
            self._spill.retry()
            self._disk.flush(deadline - self._clock())
            self._spill.poll()

    def close(self) -> None:
        """End the threads of both tiers; what is not written yet is lost."""
        if self._disk is not None:
            self._disk.close()
        self._arena.close()

    def report(self) -> CacheReport:
        """The part of the cache's report that both tiers know; counters are since start."""
        host = TierReport(
            name="host",
            used_bytes=self._host.num_residents * self.block_bytes,
            limit_bytes=self._host.max_blocks * self.block_bytes,
            blocks=self._host.num_residents,
            hits=self._num_host_hits,
            hit_tokens=self._host_hit_tokens,
            spills=self._num_spills,
            evictions=self._host.num_evictions,
        )
        report = CacheReport(
            reuse="blocks",
            block_tokens=self.block_tokens,
            restore_bytes_per_second=self.policy.restore_bytes_per_second,
            tiers=(host,),
        )
        if self._disk is None:
            return report
        stats = self._disk.stats()
        disk = TierReport(
            name="disk",
            used_bytes=self._disk.used_bytes,
            limit_bytes=self._disk.limit_bytes,
            blocks=len(self._disk),
            hits=self._num_disk_hits,
            hit_tokens=self._disk_hit_tokens,
            spills=stats.written,
            evictions=stats.evictions,
        )
        return report.model_copy(
            update={
                "rejected_blocks": stats.rejected,
                "spill_failures": stats.failures,
                "disk_read_bytes_per_second": stats.read_bytes_per_second,
                "tiers": (host, disk),
            }
        )

    def _disk_rate(self) -> float:
        return self._disk.stats().read_bytes_per_second if self._disk is not None else 0.0

    def _count_hits(self, keys: Sequence[bytes], num_tokens: int) -> None:
        for index, key in enumerate(keys):
            count = min(self.block_tokens, num_tokens - index * self.block_tokens)
            entry = self._host.find(key)
            if entry is None or entry.is_guest or not entry.is_ready:
                self._num_disk_hits += 1
                self._disk_hit_tokens += count
            else:
                self._num_host_hits += 1
                self._host_hit_tokens += count

    def _evicted(self, key: bytes) -> None:
        if self._spill is not None:
            self._spill.discard(key)


def _max_ahead(num_window: int) -> int:
    """Blocks that prefetches may land: with the free ones and the arena's spare, the window."""
    return max(num_window - _NEEDED_NOW - 1, min(num_window, 1))


def _nowhere(_key: bytes) -> bool:
    return False
