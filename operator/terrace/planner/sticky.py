"""Does a running replica restart? Plans are sticky: only for its own spec, never for news.

Owns: the digest of the inputs that restart replicas, and the decision. Does not own: the table for
people (``disruption.py``; it is exported here too). Pure. Next: ``terrace.controller.reconcile``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from terrace.api.offload import Offload
from terrace.api.quantity import parse_bytes
from terrace.planner.disruption import DISRUPTION, Disruption
from terrace.planner.tiers import (
    DEFAULT_BLOCK_TOKENS,
    DEFAULT_CHECKPOINT_COUNT,
    DEFAULT_CHECKPOINT_TOKENS,
    DEFAULT_PROFILE,
)

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from terrace.api.model import ModelSpec
    from terrace.api.pool import PoolSpec
    from terrace.planner.plan import OffloadPlan
    from terrace_runtime.contract import ModelFacts

IN_PLACE: dict[str, Any] = {
    "replicas": True,
    "served_names": True,
    "priority": True,
    "source": {"secret_ref"},
    "projector": {"secret_ref"},
    "draft": {"secret_ref"},
    "adapters": {"__all__": {"source": {"secret_ref"}}},
}
"""Fields of a model that no replica needs to restart for: the gateway routes by the names, and only
fetch Jobs read secrets."""
_FLAVOR_IN_PLACE = {"min_residence_seconds", "packing"}
_POOL_SETTINGS = {"queue", "streams", "drain_timeout_seconds"}
_QUANTITIES = {"spill_threshold", "max_disk", "prefetch_window"}
_DEFAULTS: dict[str, object] = {
    "profile": DEFAULT_PROFILE,
    "kv_block_tokens": DEFAULT_BLOCK_TOKENS,
    "checkpoint_tokens": DEFAULT_CHECKPOINT_TOKENS,
    "checkpoint_count": DEFAULT_CHECKPOINT_COUNT,
    "kv_layout": "Auto",
    "disk": {},
}
"""Writing these out changes nothing."""

__all__ = ["DISRUPTION", "Change", "Disruption", "Keep", "decide", "inputs_digest"]


@dataclass(frozen=True, slots=True)
class Keep:
    """Replicas stay as they are; ``pending`` is the plan a restart would bring, if another."""

    plan: OffloadPlan
    pending: OffloadPlan | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Replicas are replaced, one by one, by ones with this plan."""

    plan: OffloadPlan


def inputs_digest(
    facts: ModelFacts,
    model_spec: ModelSpec,
    pool_spec: PoolSpec,
    flavor_name: str,
    extra_digests: tuple[str, ...] = (),
) -> str:
    """64 hex digits over exactly those inputs whose change restarts replicas of this flavor.

    Nodes, the operator's version, other flavors and the flavors' order are none; nor is writing
    out a default. A flavor that the pool no longer has gives another digest than any it has.
    ``extra_digests``: SHA-256 of projector, draft and adapters.
    """
    flavor = next((each for each in pool_spec.flavors if each.name == flavor_name), None)
    own = model_spec.offload
    model = model_spec.model_dump(mode="json", exclude=IN_PLACE, exclude_defaults=True)
    pool = pool_spec.model_dump(mode="json", include=_POOL_SETTINGS, exclude_defaults=True)
    overridden = {name for name in Offload.model_fields if getattr(own, name) is not None}
    _put(model, "offload", _settings(own, frozenset()))
    _put(pool, "offload", _settings(pool_spec.offload, overridden))
    if pool_spec.access.cache_isolation != "Tenant":
        pool["cache_isolation"] = pool_spec.access.cache_isolation
    inputs: dict[str, object] = {
        "file": facts.digest,
        "model": model,
        "flavor": flavor
        and flavor.model_dump(mode="json", exclude_defaults=True, exclude=_FLAVOR_IN_PLACE),
        "pool": pool,
    }
    if extra_digests:
        inputs["extra_files"] = extra_digests
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _put(settings: dict[str, Any], name: str, value: dict[str, Any]) -> None:
    settings.pop(name, None)
    if value:
        settings[name] = value


def _settings(offload: Offload, left_out: AbstractSet[str]) -> dict[str, Any]:
    """Settings of one object that are no defaults; quantities by their value."""
    written = offload.model_dump(mode="json", exclude=set(left_out), exclude_defaults=True)
    return {
        name: parse_bytes(value) if name in _QUANTITIES else value
        for name, value in written.items()
        if _DEFAULTS.get(name) != value
    }


def decide(
    current_plan: OffloadPlan | None,
    current_inputs: str,
    fresh_plan: OffloadPlan,
    fresh_inputs: str,
    *,
    current_fits: bool = True,
) -> Keep | Change:
    """Keep the running plan unless its own inputs changed or it proved too small.

    ``fresh_inputs`` must be ``inputs_digest`` for the *current* plan's flavor: then a better flavor
    alone restarts nothing, and a current flavor that is gone does. Without a fresh plan (nothing
    fits any more) there is nothing to decide: a running model keeps its plan.
    ``current_fits`` is False after a replica was killed for its memory.
    """
    if current_plan is None:
        return Change(fresh_plan)
    if current_plan.digest == fresh_plan.digest:
        return Keep(current_plan)
    if current_inputs != fresh_inputs or not current_fits:
        return Change(fresh_plan)
    return Keep(current_plan, fresh_plan)
