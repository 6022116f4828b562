"""Does a running replica restart? Plans are sticky: only for its own spec, never for news.

Owns: the digest of the inputs that restart replicas, the decision, and the table that says it for
every field of both specs (``docs/disruption.md`` is generated from it). Pure.
Next: ``terrace.controller.reconcile``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from terrace.api.model import ModelSpec
    from terrace.api.pool import PoolSpec
    from terrace.planner.plan import OffloadPlan
    from terrace_runtime.contract import ModelFacts

Disruption = Literal["in place", "rolling", "new set", "refused"]

DISRUPTION: dict[str, Disruption] = {
    "InferenceModel.spec.poolRef.name": "new set",
    "InferenceModel.spec.source.uri": "refused",
    "InferenceModel.spec.source.sha256": "refused",
    "InferenceModel.spec.servedNames": "rolling",
    "InferenceModel.spec.context.length": "rolling",
    "InferenceModel.spec.context.parallel": "rolling",
    "InferenceModel.spec.offload.kvTypes.key": "rolling",
    "InferenceModel.spec.offload.kvTypes.value": "rolling",
    "InferenceModel.spec.sampling.temperature": "rolling",
    "InferenceModel.spec.sampling.topP": "rolling",
    "InferenceModel.spec.sampling.topK": "rolling",
    "InferenceModel.spec.sampling.minP": "rolling",
    "InferenceModel.spec.sampling.repeatPenalty": "rolling",
    "InferenceModel.spec.limits.maxTokens": "rolling",
    "InferenceModel.spec.replicas": "in place",
}


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
    facts: ModelFacts, model_spec: ModelSpec, pool_spec: PoolSpec, flavor_name: str
) -> str:
    """64 hex digits over exactly those inputs whose change restarts replicas of this flavor.

    Nodes, the operator's version, other flavors and the flavors' order are none. A flavor that
    the pool no longer has gives another digest than any that it has.
    """
    flavor = next((f for f in pool_spec.flavors if f.name == flavor_name), None)
    inputs = {
        "file": facts.digest,
        "model": model_spec.model_dump(mode="json", exclude={"replicas"}, exclude_defaults=True),
        "flavor": flavor and flavor.model_dump(mode="json", exclude_defaults=True),
        "pool": pool_spec.model_dump(
            mode="json",
            include={"offload", "queue", "drain_timeout_seconds"},
            exclude_defaults=True,
        ),
    }
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def decide(
    current_plan: OffloadPlan | None,
    current_inputs: str,
    fresh_plan: OffloadPlan,
    fresh_inputs: str,
    *,
    current_fits: bool = True,
) -> Keep | Change:
    """Keep the running plan unless its own inputs changed or it proved too small.

    ``fresh_inputs`` is ``inputs_digest`` for the *current* plan's flavor: a better flavor alone
    restarts nothing. ``current_fits`` is False after a replica was killed for its memory.
    """
    if current_plan is None:
        return Change(fresh_plan)
    if current_plan.digest == fresh_plan.digest:
        return Keep(current_plan)
    if current_inputs != fresh_inputs or not current_fits:
        return Change(fresh_plan)
    return Keep(current_plan, fresh_plan)
