"""What of a prompt need not be computed: found in a slot, in another sequence, or in a tier.

Owns: who holds which prefix (running sequences, slots whose sequence ended, the store), whether a
request waits for a prefix that is being computed, and what is saved when. Does not own: moving
bytes (``cells.py``), tiers (``kv``), order and budgets (``waiting.py``, ``batch_planner.py``).
On the engine's thread. Next: ``core.py`` asks ``place`` for every request that could run.

A slot keeps its cells when its sequence ends: that is the device tier. They are saved when the
engine is idle, when somebody else needs the slot or the prefix, and when a sequence is parked; so
a stream of short, different requests costs nothing. With unified cells idle ones slow everybody
down, so there they leave the device as soon as anybody runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace_runtime.contract import CacheReport, TierReport
from terrace_runtime.engine.cells import Restore
from terrace_runtime.kv.checkpoints import next_checkpoint
from terrace_runtime.kv.keys import block_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.batch_planner import BatchPlan
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.tiers import Tiers

_MIN_MOVE_TOKENS = 32
"""A slot further up is taken for the cells in it when they are worth so many tokens."""
_RESTORE_SLICE_BYTES = 48 * 1024 * 1024
"""Bytes joined in a step while others decode: some milliseconds."""


@dataclass
class Resident:
    """Cells that a sequence left in its slot."""

    tokens: list[int]
    root: bytes
    keys: list[bytes]
    is_saved: bool = False

    def common_tokens(self, sequence: Sequence, block_tokens: int) -> int:
        """How many first tokens of ``sequence`` these cells hold."""
        if self.root != sequence.root:
            return 0
        blocks = 0
        for ours, theirs in zip(self.keys, sequence.keys, strict=False):
            if ours != theirs:
                break
            blocks += 1
        common = blocks * block_tokens
        limit = min(len(self.tokens), len(sequence.tokens))
        while common < limit and self.tokens[common] == sequence.tokens[common]:
            common += 1
        return common


@dataclass
class _Found:
    """Where a prompt's beginning is; counts in tokens."""

    resident_slot: int | None = None
    resident: int = 0
    leader: Sequence | None = None
    leader_has: int = 0
    """Computed by the leader."""
    leader_will_have: int = 0
    stored: int = 0
    on_disk: int = 0
    """Of ``stored``."""
    in_host: int = 0
    """The first of ``stored``."""


@dataclass
class PrefixCounters:
    """Since start; tokens and requests."""

    queried_tokens: int = 0
    device_hit_tokens: int = 0
    device_hits: int = 0
    restores: int = 0
    parks: int = 0
    waits: int = 0


@dataclass
class PrefixCache:
    """See the module."""

    backend: Backend
    config: RuntimeConfig
    tiers: Tiers
    clock: Callable[[], float]
    counters: PrefixCounters = field(default_factory=PrefixCounters)

    def __post_init__(self) -> None:
        self._block_tokens = self.config.kv.block_tokens
        self._capabilities = self.backend.info.capabilities
        self._residents: dict[int, Resident] = {}
        self._computing: dict[bytes, Sequence] = {}
        """Key of a block -> a running sequence that holds it or is on its way to it."""
        self._restores: list[Restore] = []

    # A request comes ------------------------------------------------------------------------------

    def prepare(self, sequence: Sequence) -> None:
        """Give a sequence its keys; touches nothing else, so any thread may call it."""
        sequence.root = self.tiers.root(sequence.adapter, sequence.tenant)
        sequence.keys = block_keys(sequence.root, sequence.tokens, self._block_tokens)

    def enter(self, sequence: Sequence) -> None:
        """It is queued: what only the disk has may come nearer while it waits."""
        if self.tiers.store is not None:
            self.tiers.store.prefetch(self._usable(sequence), sequence.id)

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
        have = max(found.resident, found.stored)
        if found.leader is not None and found.leader_will_have > have and self._can_share():
            if found.leader_has < found.leader_will_have:
                self._wait_for(sequence, found.leader, found.leader_will_have)
                return None
            return self._share(sequence, found, free)
        if found.resident_slot is not None and found.resident >= found.stored:
            return self._continue_in(sequence, found.resident_slot, found.resident)
        slot = self._clear_slot(free)
        if found.stored:
            self._restore(sequence, found)
        return self._taken(sequence, slot)

    def _look(self, sequence: Sequence, free: Seq[int]) -> _Found:
        found = _Found()
        keys = self._usable(sequence)
        self.counters.queried_tokens += len(sequence.tokens)
        for slot in free:
            resident = self._residents.get(slot)
            if resident is None:
                continue
            common = min(
                resident.common_tokens(sequence, self._block_tokens), len(sequence.tokens) - 1
            )
            # Cells that cannot be cut serve only when all of them are wanted.
            if common < len(resident.tokens) and not self._capabilities.can_cut:
                continue
            # A few tokens (a template's head) are no reason to leave the lowest slot free.
            is_worth = slot == free[0] or common >= _MIN_MOVE_TOKENS
            if is_worth and common > found.resident:
                found.resident_slot, found.resident = slot, common
        for index, key in enumerate(keys):
            leader = self._computing.get(key)
            if leader is None:
                break
            found.leader = leader
            found.leader_will_have = (index + 1) * self._block_tokens
        if found.leader is not None:
            computed = found.leader.num_computed // self._block_tokens * self._block_tokens
            found.leader_has = min(found.leader_will_have, computed)
        found.stored, found.on_disk, found.in_host = self.tiers.find(keys)
        return found

    def _usable(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks before the last token, which must be computed for its logits."""
        return sequence.keys[: (len(sequence.tokens) - 1) // self._block_tokens]

    def _can_share(self) -> bool:
        return self._capabilities.can_share_cells or self.tiers.store is not None

    def _wait_for(self, sequence: Sequence, leader: Sequence, num_tokens: int) -> None:
        sequence.waits_for = (leader, num_tokens)
        # Whoever is waited for by somebody urgent is as urgent.
        leader.priority = min(leader.priority, sequence.priority)
        self.counters.waits += 1

    def _share(self, sequence: Sequence, found: _Found, free: Seq[int]) -> int:
        """Take what a running sequence has computed: its cells, or a copy through the store."""
        leader = found.leader
        assert leader is not None
        assert leader.slot is not None
        slot = self._clear_slot(free)
        count = found.leader_has
        if self._capabilities.can_share_cells:
            self.backend.seq_cp(leader.slot, slot, 0, count)
            self._hit_device(sequence, count)
        else:
            self.tiers.save(leader.slot, sequence.keys[: count // self._block_tokens])
            found.stored, found.on_disk, found.in_host = self.tiers.find(self._usable(sequence))
            if found.stored:
                self._restore(sequence, found)
        return self._taken(sequence, slot)

    def _continue_in(self, sequence: Sequence, slot: int, count: int) -> int:
        """Go on in the cells that lie in ``slot`` already."""
        resident = self._residents[slot]
        if count < len(resident.tokens):
            self._save_resident(slot)
            self.backend.seq_rm(slot, count)
        del self._residents[slot]
        self._hit_device(sequence, count)
        return self._taken(sequence, slot)

    def _hit_device(self, sequence: Sequence, count: int) -> None:
        sequence.num_computed = count
        self.counters.device_hits += 1
        self.counters.device_hit_tokens += count
        if not sequence.num_generated:
            sequence.num_cached, sequence.cached_tier = count, "device"

    def _clear_slot(self, free: Seq[int]) -> int:
        """The lowest free slot, its cells saved and dropped.

        Without a store an empty slot is better than one whose cells would be lost.
        """
        slot = free[0]
        if self.tiers.mover is None:
            slot = next((one for one in free if one not in self._residents), slot)
        self._drop(slot)
        return slot

    def _restore(self, sequence: Sequence, found: _Found) -> None:
        count = self.tiers.worth_restoring(found.stored, found.on_disk, found.in_host)
        if not count:
            return
        keys = sequence.keys[: count // self._block_tokens]
        sequence.is_restoring = True
        if not sequence.num_generated:
            sequence.cached_tier = "disk" if count > found.in_host else "host"
        self._restores.append(Restore(sequence, keys))
        self.counters.restores += 1

    def _taken(self, sequence: Sequence, slot: int) -> int:
        for key in sequence.keys:
            self._computing.setdefault(key, sequence)
        return slot

    # While it runs --------------------------------------------------------------------------------

    @property
    def is_restoring(self) -> bool:
        """Blocks are on their way."""
        return bool(self._restores)

    @property
    def has_residents(self) -> bool:
        """Free slots hold cells."""
        return bool(self._residents)

    @property
    def untouchable(self) -> Container[int]:
        """Free slots whose cells no filler may follow: they could not be cut, or would be lost."""
        can_leave = self.tiers.store is not None and self.tiers.can_save
        return () if can_leave and self._capabilities.can_cut else self._residents

    def filler_base(self, slot: int, longest: int, room: int) -> int:
        """Where fillers of a free slot begin: behind the cells that lie there, or at 0.

        A step attends to as many cells as its longest slot has, so cells that are longer than
        everybody's (``longest``) leave, saved; so do those that leave no ``room`` for fillers.
        """
        resident = self._residents.get(slot)
        if resident is None:
            return 0
        held = len(resident.tokens)
        if held <= longest and held + room <= self.config.context_tokens:
            return held
        self._drop(slot)
        return 0

    def advance(self, *, others_run: bool) -> None:
        """Go on with restores; in slices while ``others_run``."""
        budget = _RESTORE_SLICE_BYTES if others_run else 1 << 62
        while self._restores:
            restore = self._restores[0]
            assert self.tiers.mover is not None
            started = self.clock()
            is_done = self.tiers.mover.advance(restore, budget)
            restore.seconds += self.clock() - started
            if not is_done:
                return
            self._restores.pop(0)
            self.tiers.observe_restore(restore.num_tokens, restore.seconds)
            self._finish(restore)
            if others_run:
                budget -= len(restore.keys) * self.tiers.block_bytes
                if budget <= 0:
                    return

    def _finish(self, restore: Restore) -> None:
        sequence = restore.sequence
        sequence.is_restoring = False
        sequence.num_computed = restore.num_tokens
        if not sequence.num_generated:
            sequence.num_cached = restore.num_tokens
            if not restore.num_tokens:
                sequence.cached_tier = ""

    def set_stops(self, group: Seq[Sequence]) -> None:
        """Where chunks must end so that a state can be kept."""
        if self.tiers.checkpoints is not None:
            kv = self.config.kv
            for one in group:
                following = next_checkpoint(
                    one.num_computed, len(one.tokens), kv.checkpoint_tokens, kv.block_tokens
                )
                one.stop_at = following or 0

    def computed(self, plan: BatchPlan) -> None:
        """Keep the states of prompts that have come to their stop."""
        if self.tiers.checkpoints is None:
            return
        for item in plan.work:
            sequence = item.sequence
            if sequence.slot is not None and sequence.num_computed == sequence.stop_at:
                blocks = sequence.num_computed // self._block_tokens
                self.tiers.save(sequence.slot, sequence.keys[:blocks])

    def trim(self, *, somebody_runs: bool) -> None:
        """Unified cells: those that nobody uses leave the device before they slow others down."""
        if self.config.kv_unified and somebody_runs and self.tiers.can_save:
            self.drop_all()

    def drop_all(self) -> None:
        """Save what is worth it and empty all slots that nobody runs in."""
        for slot in list(self._residents):
            self._drop(slot)

    def leave(self, sequence: Sequence) -> None:
        """Its slot is free again; its cells stay there."""
        self._forget(sequence)
        assert sequence.slot is not None
        if sequence.num_computed and self._capabilities.reuse != "none":
            tokens = sequence.tokens[: sequence.num_computed]
            self._residents[sequence.slot] = Resident(
                tokens, sequence.root, sequence.keys[: len(tokens) // self._block_tokens]
            )
        else:
            self.backend.seq_rm(sequence.slot)

    def gone(self, sequence: Sequence) -> None:
        """It ended, wherever it was."""
        if self.tiers.store is not None:
            self.tiers.store.forget(sequence.id)

    def park(self, sequence: Sequence) -> None:
        """Save a running sequence, and give up its slot and cells."""
        slot = sequence.slot
        assert slot is not None
        self.counters.parks += 1
        if not sequence.is_restoring and sequence.num_computed and self.tiers.can_save:
            computed = sequence.tokens[: sequence.num_computed]
            sequence.keys = self._all_keys(sequence.root, computed, sequence.keys)
            self.tiers.save(slot, sequence.keys)
            if self.tiers.store is not None:
                self.tiers.store.hold(sequence.keys, sequence.id)
        self._forget(sequence)
        self.backend.seq_rm(slot)

    def _forget(self, sequence: Sequence) -> None:
        for restore in [one for one in self._restores if one.sequence is sequence]:
            self._restores.remove(restore)
            assert self.tiers.mover is not None
            self.tiers.mover.give_up(restore)
        sequence.is_restoring = False
        for key in sequence.keys:
            if self._computing.get(key) is sequence:
                del self._computing[key]

    def report(self) -> CacheReport:
        """Tiers with bytes, hits and failures since start."""
        below = self.tiers.report()
        held = sum(len(resident.tokens) for resident in self._residents.values())
        device = TierReport(
            name="device",
            used_bytes=held * self.tiers.block_bytes // self._block_tokens,
            blocks=sum(len(resident.keys) for resident in self._residents.values()),
            hits=self.counters.device_hits,
            hit_tokens=self.counters.device_hit_tokens,
        )
        return below.model_copy(
            update={
                "reuse": self._capabilities.reuse,
                "block_tokens": self._block_tokens,
                "queried_tokens": self.counters.queried_tokens,
                "restores": self.counters.restores,
                "parks": self.counters.parks,
                "tiers": (device, *below.tiers),
            }
        )

    # When there is time ---------------------------------------------------------------------------

    @property
    def has_chores(self) -> bool:
        """Cells lie in slots that no tier below has."""
        return self.tiers.store is not None and any(
            not resident.is_saved for resident in self._residents.values()
        )

    def chore(self) -> None:
        """Save one slot's cells."""
        for slot, resident in self._residents.items():
            if not resident.is_saved:
                self._save_resident(slot)
                return

    def _drop(self, slot: int) -> None:
        if slot in self._residents:
            self._save_resident(slot)
            del self._residents[slot]
            self.backend.seq_rm(slot)

    def _save_resident(self, slot: int) -> None:
        resident = self._residents[slot]
        if not resident.is_saved:
            resident.keys = self._all_keys(resident.root, resident.tokens, resident.keys)
            self.tiers.save(slot, resident.keys)
            resident.is_saved = True

    def _all_keys(self, root: bytes, tokens: list[int], known: list[bytes]) -> list[bytes]:
        full = len(tokens) // self._block_tokens
        return block_keys(root, tokens, self._block_tokens, known[:full])
