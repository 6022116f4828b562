"""The status of a model, complete, from findings and what the status was before.

Owns: every field of status, the times of conditions. Does not own: which condition holds
(``conditions.py``), the pool's status (``pool_status.py``), writing (``reconcile.py``). Pure. Equal
findings give an equal status, so that nothing is written twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.status import ConditionStatus, InferenceModelStatus, PlacementStatus
from terrace.controller.cache import adapter_names
from terrace.controller.conditions import model_conditions
from terrace.controller.corrections import measured_status
from terrace.controller.download_status import download_status
from terrace.controller.facts import model_status as facts_status
from terrace.controller.files import adapter_statuses, draft_status, stored_projector
from terrace.controller.kinds import Kind, Manifest, key_of
from terrace.controller.observe import source_uri
from terrace.controller.placing import Decision
from terrace.controller.plan_status import plan_status
from terrace.controller.report_status import cache_status, performance_status

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from terrace.api.conditions import Condition
    from terrace.controller.findings import Findings


def model_status(model: Manifest, found: Findings, url: str, now: datetime) -> Manifest:
    """The whole status as the API has it."""
    before = model.get("status") or {}
    generation = int(model["metadata"].get("generation", 0))
    known = found.fetch.known
    decision = found.decision if isinstance(found.decision, Decision) else None
    selector = ",".join(f"{k}={v}" for k, v in names.selector_labels(key_of(model).name).items())
    status = InferenceModelStatus(
        observed_generation=generation,
        conditions=with_times(model_conditions(found), before, generation, now),
        replicas=len(found.live),
        ready_replicas=len(found.ready),
        selector=selector,
        served_names=_served_names(model, found, before),
        url=url or None,
        placement=_placement(found, decision, before),
        plan=plan_status(decision) if decision else None,
        model=facts_status(known, source_uri(model)) if known else None,
        projector=stored_projector(found.extras),
        draft=draft_status(found.extras),
        adapters=adapter_statuses(found.extras),
        download=download_status(found, before, now),
        performance=performance_status(found.report, before),
        measured=measured_status(found.report, decision, found.image, before),
        cache=cache_status(found.report, before),
    )
    shown = as_json(status)
    if decision is None and before.get("plan") and found.replicas:
        shown["plan"] = before["plan"]  # Replicas that run on run with the plan they had.
    if found.invalid_spec:  # It does not say which files are wanted: what is known stays known.
        extras = ("projector", "draft", "adapters")
        shown |= {field: before[field] for field in extras if field in before}
    return shown


def as_json(status: InferenceModelStatus) -> Manifest:
    """JSON without what is absent."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def with_times(
    conditions: Iterable[Condition], before: Manifest, generation: int, now: datetime
) -> list[ConditionStatus]:
    """Conditions with lastTransitionTime: kept while the status stays the same."""
    then = {c.get("type"): c for c in before.get("conditions") or ()}
    result = []
    for condition in conditions:
        word = "Unknown" if condition.status is None else str(condition.status)
        old = then.get(condition.type.value) or {}
        since = old.get("lastTransitionTime") if old.get("status") == word else None
        result.append(
            ConditionStatus.model_validate(
                {
                    "type": condition.type.value,
                    "status": word,
                    "reason": str(condition.reason),
                    "message": condition.message,
                    "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "observedGeneration": generation,
                }
            )
        )
    return result


def status_patch(kind: Kind, live: Manifest, status: Manifest) -> Manifest:
    """The body of a status apply."""
    key = key_of(live)
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": live["metadata"]["uid"]},
        "status": status,
    }


def _placement(
    found: Findings, decision: Decision | None, before: Manifest
) -> PlacementStatus | None:
    if decision is not None:
        return PlacementStatus(flavor=decision.plan.flavor, stateful_set=found.stateful_set)
    if found.replicas and before.get("placement"):
        return PlacementStatus.model_validate(before["placement"])
    return None


def _served_names(model: Manifest, found: Findings, before: Manifest) -> list[str]:
    """Names that work. An adapter's does once every replica has it, and then stays."""
    has_all = isinstance(found.decision, Decision) and not found.decision.held
    if has_all and not found.is_rolling:
        return list(found.claims.won)
    known = {*(before.get("servedNames") or ())}
    waiting = {*adapter_names(model)} - known
    return [name for name in found.claims.won if name not in waiting]
