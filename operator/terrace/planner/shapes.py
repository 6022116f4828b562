"""What is to be placed, and all shapes that it may take, in order of preference.

Owns: joining the sizes of context (``sizing.py``) and the split over devices (``device_sizes.py``)
with the tiers (``tiers.py``, ``classes.py``). Does not own: which shape fits (``placement.py``).
Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.api.offload import KvTypes, Offload
from terrace.planner.classes import class_tiers, reuse_of
from terrace.planner.correction import device_class, joined
from terrace.planner.device_sizes import Sized, preferred
from terrace.planner.footprint import Extras, draft_bytes, kv_bytes
from terrace.planner.geometry import KV_BLOCK, Shape, kv_bytes_per_cell
from terrace.planner.plan import UBATCH_TOKENS
from terrace.planner.projector import NO_PROJECTOR, projector_bytes
from terrace.planner.refusals import MIN_CONTEXT
from terrace.planner.sizing import Size, sizes
from terrace.planner.tiers import Tiers, tier_choices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.model import ModelSpec
    from terrace.planner.geometry import DeviceSplit
    from terrace.planner.inputs import ModelInputs
    from terrace.planner.room import Room
    from terrace_runtime.contract import ModelFacts

EVEN_STEPS = frozenset({"kimi-linear"})
"""*Seen*: this build of llama.cpp aborts when it opens split cells of theirs, unless the largest
evaluation has equally many tokens of each sequence."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be placed, and the shapes it may take."""

    model: ModelInputs
    offload: Offload
    """The model's settings over its pool's."""
    ubatch_tokens: int = UBATCH_TOKENS
    """Most tokens of one graph."""

    @property
    def facts(self) -> ModelFacts:
        """Of the model file."""
        return self.model.facts

    @property
    def spec(self) -> ModelSpec:
        """Of the InferenceModel."""
        return self.model.spec

    @property
    def kv_types(self) -> KvTypes:
        """Number formats of the KV cells."""
        return self.offload.kv_types or KvTypes()

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return kv_bytes_per_cell(self.facts, self.bare(Size(MIN_CONTEXT, 1, ())))

    @property
    def takes_quantised_cells(self) -> bool:
        """Whether each head is a whole number of blocks."""
        lengths = [(run.key_length, run.value_length) for run in self.facts.layers if run.kv_heads]
        return not any(key % KV_BLOCK or value % KV_BLOCK for key, value in lengths)

    def in_room(self, room: Room) -> Wish:
        """The same with the correction that holds in ``room``."""
        found = self.model.corrections.get(device_class(room.device))
        if found is None:
            return self
        correction = joined((self.model.correction, found))
        return replace(self, model=replace(self.model, correction=correction))

    def extras_of(self, size: Size) -> Extras:
        """What a replica holds beside its model."""
        draft = self.model.draft
        is_used = draft is not None and self.spec.speculation.mode == "Draft"
        projector = self.model.projector
        return Extras(
            projector=projector_bytes(projector) if projector else NO_PROJECTOR,
            draft_bytes=draft_bytes(draft, size.context_tokens, size.parallel)
            if draft and is_used
            else 0,
            adapter_bytes=self.model.adapter_bytes,
            correction=self.model.correction,
        )

    @property
    def speculation_reasons(self) -> tuple[str, ...]:
        """Why the model does not guess ahead although it should, where that is so."""
        if self.spec.speculation.mode == "Off" or reuse_of(self.facts) == "blocks":
            return ()
        return ("no speculation: this model's last tokens cannot be dropped alone",)

    def sized(self, room: Room) -> Iterator[Sized]:
        """Sizes of context for ``room`` in order of preference, each with what goes to devices.

        None where not one layer fits its devices.
        """
        if room.device is None:
            return (Sized(size, None, 0.0) for size in self.sizes(room))
        return preferred(self, room.device, list(self.sizes(room)))

    def sizes(self, room: Room) -> Iterator[Size]:
        """Sizes of context in order of preference, as far as the room's kernels take them."""
        device = room.device
        # A pooled model's sequences share one input's cells and a step's: more cost nothing.
        is_idle = device is not None and not device.is_unified and not self.facts.pooling
        return sizes(
            self.facts,
            self.spec.context,
            most_parallel=device.max_parallel if device else None,
            with_extra=is_idle,
        )

    def choices(self, size: Size, split: DeviceSplit | None = None) -> Iterator[Shape]:
        """The shapes of one size, the one that takes least last."""
        bare = replace(self.bare(size), split=split)
        cells = kv_bytes(self.facts, bare)
        choices = tier_choices(
            self.offload,
            cells,
            self.bytes_per_token,
            has_device=split is not None,
            whole_states=reuse_of(self.facts) == "checkpoints",
        )
        for tiers in class_tiers(self.facts, choices):
            # What either layout needs is planned; where that is too much, cells stay split.
            if self._may_follow(bare, tiers):
                yield replace(bare, tiers=replace(tiers, is_auto=True))
            yield replace(bare, tiers=tiers)

    def _may_follow(self, shape: Shape, tiers: Tiers) -> bool:
        """Whether the layout of cells can follow what requests share (kvLayout Auto).

        Cells move through the host tier. On devices it was not measured; an image may need a whole
        evaluation, and those of changed cells are smaller.
        """
        return (
            self.offload.kv_layout in (None, "Auto")
            and shape.split is None
            and shape.parallel > 1
            and tiers.host_bytes > 0
            and reuse_of(self.facts) == "blocks"
            and self.model.projector is None
        )

    def bare(self, size: Size) -> Shape:
        """A shape without tiers."""
        guessing = self.spec.speculation
        is_unified, ubatch = self.offload.kv_layout == "Unified", self.ubatch_tokens
        if self.facts.architecture in EVEN_STEPS and not is_unified:
            ubatch -= ubatch % size.parallel
        return Shape(
            size.context_tokens,
            size.parallel,
            ubatch,
            self.kv_types.key,
            self.kv_types.value,
            guessed_tokens=0 if guessing.mode == "Off" else guessing.max_tokens,
            tiers=Tiers(is_unified=is_unified),
        )
