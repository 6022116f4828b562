"""What a placement is made from: the model, and the cluster as it is.

Owns: the values that ``place`` takes. Does not own: reading them (``controller/inventory.py``,
``cli``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace.planner.accelerators import AcceleratorTable, built_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.api.model import ModelSpec
    from terrace.planner.nodes import NodeFacts
    from terrace_runtime.contract import ModelFacts, ProjectorFacts


@dataclass(frozen=True, slots=True)
class Correction:
    """What replicas of one (file, build, device class) took beyond their plan, in bytes."""

    host_bytes: int = 0
    device_bytes: int = 0
    """On the device that was furthest above its plan."""


NO_CORRECTION = Correction()


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """One model, as far as its plan depends on it."""

    facts: ModelFacts
    spec: ModelSpec
    projector: ProjectorFacts | None = None
    """Facts of ``spec.projector``, once they are known."""
    draft: ModelFacts | None = None
    """Facts of ``spec.draft``, once they are known."""
    adapter_bytes: int = 0
    """All adapters of ``spec.adapters`` together."""
    adapter_digests: tuple[str, ...] = ()
    """SHA-256 of each of them."""
    correction: Correction = NO_CORRECTION
    """Holds in every room."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """Device class (``correction.device_class``) -> what holds in rooms of it besides."""
    attempt: int = 0
    """How often a plan proved too small before."""

    @property
    def extra_digests(self) -> tuple[str, ...]:
        """SHA-256 of every file beside the model's own."""
        beside = [each.digest for each in (self.projector, self.draft) if each is not None]
        return (*beside, *self.adapter_digests)


@dataclass(frozen=True, slots=True)
class Usage:
    """What pods of other models have requested.

    By the name of the node where a pod has one, else by ``unbound`` of the flavor it was placed on.
    """

    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes."""
    devices: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Extended resource -> node or ``unbound`` flavor -> whole devices."""


def unbound(flavor: str) -> str:
    """Where pods of a flavor are counted until they have a node; no node can be called so."""
    return f"flavor/{flavor}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes and what is taken of them."""

    nodes: tuple[NodeFacts, ...]
    used: Usage = Usage()
    accelerators: AcceleratorTable = field(default_factory=built_in)
    """What devices there are; the operator's own table, where it was given one."""
    is_standalone: bool = False
    """Whether these are machines outside of Kubernetes, which may have Metal."""
