"""What is to be placed, and all shapes that it may take, in order of preference.

Owns: joining the sizes of context (``sizing.py``) with the tiers (``tiers.py``, ``classes.py``).
Does not own: which shape fits (``placement.py``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.api.offload import KvTypes, Offload
from terrace.planner.classes import class_tiers, reuse_of
from terrace.planner.footprint import kv_bytes
from terrace.planner.geometry import Shape, kv_bytes_per_cell
from terrace.planner.plan import UBATCH_TOKENS
from terrace.planner.sizing import Size, sizes
from terrace.planner.tiers import tier_choices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.model import ModelSpec
    from terrace_runtime.contract import ModelFacts

MIN_CONTEXT = 64
"""Least context that the runtime takes."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be placed, and the shapes it may take."""

    facts: ModelFacts
    spec: ModelSpec
    offload: Offload
    """The model's settings over its pool's."""

    @property
    def kv_types(self) -> KvTypes:
        """Number formats of the KV cells."""
        return self.offload.kv_types or KvTypes()

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return kv_bytes_per_cell(self.facts, self._bare(Size(MIN_CONTEXT, 1, ())))

    @property
    def speculation_reasons(self) -> tuple[str, ...]:
        """Why the model does not guess ahead although it should, where that is so."""
        if self.spec.speculation.mode == "Off" or reuse_of(self.facts) == "blocks":
            return ()
        return ("no speculation: this model's last tokens cannot be dropped alone",)

    def shapes(self) -> Iterator[tuple[Size, Shape]]:
        """All shapes in order of preference: tiers shrink before the context does."""
        for size in sizes(self.facts, self.spec.context):
            for shape in self.choices(size):
                yield size, shape

    def choices(self, size: Size) -> Iterator[Shape]:
        """The shapes of one size, the one that takes least last."""
        bare = self._bare(size)
        cells = kv_bytes(self.facts, bare)
        choices = tier_choices(self.offload, cells, self.bytes_per_token)
        for tiers in class_tiers(self.facts, choices):
            yield replace(bare, tiers=tiers)

    def _bare(self, size: Size) -> Shape:
        guessing = self.spec.speculation
        return Shape(
            size.context_tokens,
            size.parallel,
            UBATCH_TOKENS,
            self.kv_types.key,
            self.kv_types.value,
            guessed_tokens=0 if guessing.mode == "Off" else guessing.max_tokens,
        )
