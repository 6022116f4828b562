"""One model on one target with every profile: what ``terrace plan`` shows.

Owns: asking the planner five times. Does not own: any number of a plan (``planner``). Pure. Next:
``plan_table.py``, ``plan_json.py`` and ``plan_yaml.py`` print it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from terrace.api.offload import Profile, overridden
from terrace.planner.inputs import ModelInputs
from terrace.planner.placement import Placement, place
from terrace.planner.tiers import DEFAULT_PROFILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.api.model import ModelSpec
    from terrace.api.names import Key
    from terrace.api.pool import PoolSpec
    from terrace.cli.installation import Installation
    from terrace.controller.cache import Cache
    from terrace.planner.inputs import Cluster, Correction
    from terrace.planner.rooms import NoPlacement
    from terrace_runtime.contract import ModelFacts, ProjectorFacts

PROFILES: tuple[Profile, ...] = get_args(Profile)


@dataclass(frozen=True, slots=True)
class Learned:
    """Where to look for what replicas took."""

    cache: Cache
    installed: Installation


@dataclass(frozen=True, slots=True)
class Beside:
    """Facts of the files beside the model's own."""

    projector: ProjectorFacts | None = None
    draft: ModelFacts | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is planned."""

    title: str
    """What it is, in a line."""
    pool_key: Key
    pool: PoolSpec
    cluster: Cluster
    notes: tuple[str, ...] = ()
    """What the reader has to know about it."""
    is_stored: bool = False
    """Whether the pool is one of the cluster's."""
    learned: Learned | None = None
    """None: nothing ran there yet."""

    def inputs(self, facts: ModelFacts, spec: ModelSpec, beside: Beside = Beside()) -> ModelInputs:
        """The model, with what replicas of its file took here beyond their plans."""
        corrections: Mapping[str, Correction] = {}
        if self.learned is not None:
            installed, cache = self.learned.installed, self.learned.cache
            corrections = installed.corrections(cache, facts.digest, spec, self.pool)
        return ModelInputs(
            facts,
            spec,
            projector=beside.projector,
            draft=beside.draft,
            corrections=corrections,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One profile and what comes of it."""

    profile: Profile
    is_chosen: bool
    result: Placement | NoPlacement

    @property
    def fits(self) -> bool:
        """Whether the model would be placed."""
        return isinstance(self.result, Placement)


def plan_profiles(inputs: ModelInputs, target: Target) -> tuple[Row, ...]:
    """Every profile; the chosen one is what the model's settings over its pool's say."""
    offload = overridden(target.pool.offload, inputs.spec.offload)
    chosen = offload.profile or DEFAULT_PROFILE
    rows = []
    for profile in PROFILES:
        # The chosen one is planned just as it is written, so that its digest is the operator's.
        asked = inputs if profile == chosen else _with_profile(inputs, profile)
        result = place(asked, target.pool, target.cluster)
        rows.append(Row(profile, profile == chosen, result))
    return tuple(rows)


def chosen_row(rows: tuple[Row, ...]) -> Row:
    """The row of the profile that the model would get."""
    return next(row for row in rows if row.is_chosen)


def _with_profile(inputs: ModelInputs, profile: Profile) -> ModelInputs:
    offload = inputs.spec.offload.model_copy(update={"profile": profile})
    return replace(inputs, spec=inputs.spec.model_copy(update={"offload": offload}))
