"""What of a prompt need not be computed: found in a slot, in another sequence, or in a tier.

Owns: the choice among those, whether a request waits for a prefix that is being computed, and
parking. Does not own: cells in free slots (``residents.py``), blocks on their way
(``restores.py``), tiers (``tiers.py``), order and budgets (``waiting.py``, ``batch_planner.py``).
On the engine's thread. Next: ``core.py`` asks ``place`` for every request that could run.

With unified cells idle ones slow everybody down, so there they leave the device as soon as anybody
runs; with split cells they stay until somebody else needs the slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace_runtime.contract import CacheReport, TierReport
from terrace_runtime.engine.image_spans import whole_blocks
from terrace_runtime.engine.pins import Pins
from terrace_runtime.engine.residents import Residents
from terrace_runtime.engine.restores import Restores
from terrace_runtime.engine.stops import LEAST_GAIN, Stops
from terrace_runtime.kv.keys import block_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.batch_planner import BatchPlan
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.tiers import Tiers

_HEADROOM_TOKENS = 128
"""Cells that a sequence is expected to need beyond its prompt, when cells are shared by all."""


@dataclass
class _Found:
    """Where a prompt's beginning is; counts in tokens."""

    slot: int
    resident: int
    """In the cells of ``slot``."""
    leader: Sequence | None = None
    """A running sequence with the same beginning."""
    leader_has: int = 0
    leader_will_have: int = 0
    stored: int = 0
    on_disk: int = 0
    """Of ``stored``."""
    in_host: int = 0
    """The first of ``stored``."""


class PrefixCache:
    """See the module."""

    def __init__(
        self, backend: Backend, config: RuntimeConfig, tiers: Tiers, clock: Callable[[], float]
    ) -> None:
        """``backend`` is loaded; ``clock`` gives seconds."""
        self.tiers = tiers
        self.residents = Residents(backend, tiers, config)
        self.restores = Restores(tiers, clock)
        self._pins = Pins(tiers.store) if tiers.store is not None else None
        kept = tiers.checkpoints
        self._stops = Stops(config.kv, kept) if kept is not None else None
        self._backend = backend
        self._config = config
        self._block_tokens = config.kv.block_tokens
        self._capabilities = backend.info.capabilities
        self._computing: dict[bytes, Sequence] = {}
        """Key of a block -> a running sequence that holds it or is on its way to it."""
        self._queried_tokens = self._missed_blocks = 0
        self._device_hits = self._device_hit_tokens = 0
        self._num_restores = self._num_parks = 0

    # A request comes ------------------------------------------------------------------------------

    def prepare(self, sequence: Sequence) -> None:
        """Give a sequence its keys; touches nothing else, so any thread may call it."""
        sequence.root = self.tiers.root(sequence.adapter, sequence.tenant)
        sequence.keys = block_keys(sequence.root, sequence.tokens, self._block_tokens)

    def enter(self, sequence: Sequence) -> None:
        """It is queued: what only the disk has may come nearer while it waits."""
        usable = self._usable(sequence)
        if sequence.images.spans:
            sequence.images.num_expected = self._stored(sequence, usable)[0]
        if self.tiers.store is not None:
            self.tiers.store.prefetch(usable, sequence.id)

    def is_released(self, sequence: Sequence) -> bool:
        """Whether ``place`` may have another answer for a sequence that it made wait."""
        if sequence.waits_for is not None:
            leader, needed = sequence.waits_for
            if leader.slot is not None and leader.num_computed < needed:
                return False
            sequence.waits_for = None
        return self.tiers.can_save

    def place(self, sequence: Sequence, free: Seq[int]) -> int | None:
        """A slot for ``sequence``, with as much of its prompt in it as is to be had; None: wait.

        ``free`` are the slots that nobody runs in, ascending, at least one.
        """
        if not self.tiers.can_save:
            return None
        found = self._look(sequence, free)
        restored = 0
        if found.leader is not None and self._is_best(found):
            if found.leader_has < found.leader_will_have:
                self._wait_for(sequence, found.leader, found.leader_will_have)
                return None
            slot = self._share(sequence, found.leader, found.leader_has, free)
        elif found.resident and found.resident >= found.stored:
            slot = found.slot
            self.residents.take(slot, found.resident)
            self._hit_device(sequence, found.resident)
        else:
            slot = self._clear_slot(free)
            restored = self._restore(sequence, found)
        return self._taken(sequence, slot, restored)

    def _look(self, sequence: Sequence, free: Seq[int]) -> _Found:
        found = _Found(*self.residents.best(sequence, free))
        keys = self._usable(sequence)
        for index, key in enumerate(keys):
            leader = self._computing.get(key)
            if leader is None:
                break
            found.leader = leader
            found.leader_will_have = (index + 1) * self._block_tokens
        if found.leader is not None:
            theirs, ours = found.leader.tokens, sequence.tokens
            common, limit = found.leader_will_have, min(len(theirs), len(ours) - 1)
            while common < limit and theirs[common] == ours[common]:
                common += 1
            if self._stops is None:
                found.leader_will_have = sequence.whole(common)
                found.leader_has = sequence.whole(min(common, found.leader.num_computed))
            else:
                found.leader_will_have = self._stops.ahead(found.leader, common)
        found.stored, found.on_disk, found.in_host = self._stored(sequence, keys)
        return found

    def _stored(self, sequence: Sequence, keys: list[bytes]) -> tuple[int, int, int]:
        """As ``Tiers.find``, of a prefix that does not end inside an image."""
        found = self.tiers.find(keys)
        while (kept := self._whole(sequence, found[0])) < found[0]:
            found = self.tiers.find(keys[: kept // self._block_tokens])
        return found

    def _whole(self, sequence: Sequence, count: int) -> int:
        """Whole blocks of ``count`` tokens, as far as they end in no image."""
        return whole_blocks(sequence.images.spans, count, self._block_tokens)

    def _usable(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks before the last token, which must be computed for its logits."""
        return sequence.keys[: (len(sequence.tokens) - 1) // self._block_tokens]

    def _is_best(self, found: _Found) -> bool:
        """Whether the running sequence has more, or will have, than is to be had elsewhere."""
        if found.leader_will_have <= found.resident:
            return False
        if self._can_share_cells:
            # Sharing costs nothing, and a copy from a tier would take cells of its own.
            return found.leader_will_have >= found.stored
        if self._stops is not None:
            return found.leader_will_have >= max(found.resident, found.stored) + LEAST_GAIN
        return self.tiers.store is not None and found.leader_will_have > found.stored

    @property
    def _can_share_cells(self) -> bool:
        return self._capabilities.can_cut and self._backend.scratch is not None

    def _wait_for(self, sequence: Sequence, leader: Sequence, num_tokens: int) -> None:
        sequence.waits_for = (leader, num_tokens)
        if self._stops is not None:
            self._stops.add(leader, num_tokens)
        # Whoever is waited for by somebody urgent is as urgent.
        leader.priority = min(leader.priority, sequence.priority)

    def _share(self, sequence: Sequence, leader: Sequence, count: int, free: Seq[int]) -> int:
        """Take what a running sequence has computed: its cells, or a copy of them."""
        assert leader.slot is not None
        slot = self._clear_slot(free)
        if self._can_share_cells:
            self._backend.seq_cp(leader.slot, slot, 0, count)
            self._hit_device(sequence, count)
        elif self.tiers.copy(leader.slot, slot, count):
            self._hit_device(sequence, count)
        return slot

    def _hit_device(self, sequence: Sequence, count: int) -> None:
        sequence.num_computed = count
        self._device_hits += 1
        self._device_hit_tokens += count
        if not sequence.is_resumed:
            sequence.num_cached, sequence.cached_tier = count, "device"

    def _clear_slot(self, free: Seq[int]) -> int:
        """The lowest free slot, its cells saved and dropped.

        Without a store an empty slot is better than one whose cells would be lost.
        """
        slot = free[0]
        if self.tiers.mover is None:
            slot = next((one for one in free if one not in self.residents), slot)
        self.residents.drop(slot)
        return slot

    def _restore(self, sequence: Sequence, found: _Found) -> int:
        """Have what is worth it brought into the slot; how many tokens."""
        count = self.tiers.worth_restoring(found.stored, found.on_disk, found.in_host)
        count = self._whole(sequence, count)
        keys = sequence.keys[: count // self._block_tokens]
        tier = "disk" if count > found.in_host else "host"
        if count == found.stored:
            count = self.restores.lengthen(sequence, keys)
        if count:
            self._num_restores += 1
            self.restores.start(sequence, keys, count, tier)
        return count

    def _taken(self, sequence: Sequence, slot: int, restored: int) -> int:
        found = restored or sequence.num_computed
        usable = self._usable(sequence)
        if self._stops is not None:
            self._stops.begin(sequence, usable, found)
        self._queried_tokens += len(sequence.tokens)
        self._missed_blocks += len(usable) - found // self._block_tokens
        for key in sequence.keys:
            self._computing.setdefault(key, sequence)
        if not sequence.is_restoring:
            self.tiers.release(sequence.id)
        return slot

    def has_cells_for(self, sequence: Sequence, running: Seq[Sequence]) -> bool:
        """Whether what it is expected to need is there, where all share fewer cells than slots."""
        if not self._backend.is_unified or not self._config.kv_cells:
            return True
        used = sum(len(one.tokens) for one in running)
        return used + len(sequence.tokens) + _HEADROOM_TOKENS <= self._config.kv_cells

    # While it runs --------------------------------------------------------------------------------

    @property
    def untouchable(self) -> Container[int]:
        """Free slots whose cells no filler may follow: they could not be cut, or would be lost."""
        can_leave = self.tiers.store is not None and self.tiers.can_save
        return () if can_leave and self._capabilities.can_cut else self.residents

    def trim(self, *, somebody_runs: bool) -> None:
        """Unified cells: those that nobody uses leave the device before they slow others down."""
        if self._backend.is_unified and somebody_runs and self.tiers.can_save:
            self.residents.drop_all()

    def set_stops(self, group: Seq[Sequence]) -> None:
        """Where chunks must end so that a state can be kept."""
        if self._stops is not None:
            self._stops.set(group)

    def computed(self, plan: BatchPlan) -> None:
        """Keep the states of prompts that have come to their stop."""
        for one in self._stops.reached(plan) if self._stops is not None else ():
            assert one.slot is not None
            self.tiers.save(one.slot, one.root, one.tokens[: one.num_computed], one.keys)

    # It leaves its slot ---------------------------------------------------------------------------

    def leave(self, sequence: Sequence) -> None:
        """It ended in its slot; its cells stay there."""
        self._forget(sequence)
        assert sequence.slot is not None
        slot = sequence.slot
        self.residents.add(sequence)
        if sequence.request.pin and self._pins is not None and slot in self.residents:
            self.residents.save(slot)
            self._pins.add(sequence.keys[: sequence.num_prompt // self._block_tokens])

    def gone(self, sequence: Sequence) -> None:
        """It ended, wherever it was."""
        self.tiers.release(sequence.id)
        if self._stops is not None:
            self._stops.forget(sequence)

    def park(self, sequence: Sequence) -> None:
        """Set a running sequence aside for room, or for one that is more urgent."""
        self._num_parks += 1
        self.unload(sequence)

    def unload(self, sequence: Sequence) -> None:
        """Save a running sequence, and give up its slot and cells."""
        slot = sequence.slot
        assert slot is not None
        computed = sequence.tokens[: sequence.num_computed]
        self._forget(sequence)
        if computed and self.tiers.can_save:
            saved = self.tiers.save(slot, sequence.root, computed, sequence.keys)
            self.tiers.hold(saved, sequence.id)
            # A prompt that is computed in part has the keys of its other blocks already.
            whole = saved[: len(computed) // self._block_tokens]
            sequence.keys = max(whole, sequence.keys, key=len)
        sequence.is_resumed = sequence.is_resumed or bool(computed)
        self._backend.seq_rm(slot)

    def _forget(self, sequence: Sequence) -> None:
        self.restores.cancel(sequence)
        for key in sequence.keys:
            if self._computing.get(key) is sequence:
                del self._computing[key]

    # When there is time ---------------------------------------------------------------------------

    def chore(self) -> bool:
        """Save one slot's cells; False: they are all saved."""
        slot = self.residents.unsaved()
        if slot is not None:
            self.residents.save(slot)
        return slot is not None

    def report(self) -> CacheReport:
        """Tiers with bytes, hits and failures since start."""
        below = self.tiers.report()
        held = self.residents.num_tokens
        device = TierReport(
            name="device",
            used_bytes=held * self.tiers.block_bytes // self._block_tokens,
            blocks=held // self._block_tokens,
            hits=self._device_hits,
            hit_tokens=self._device_hit_tokens,
        )
        return below.model_copy(
            update={
                "reuse": self._capabilities.reuse,
                "block_tokens": self._block_tokens,
                "queried_tokens": self._queried_tokens,
                "misses": self._missed_blocks,
                "restores": self._num_restores,
                "parks": self._num_parks,
                "tiers": (device, *below.tiers),
            }
        )
