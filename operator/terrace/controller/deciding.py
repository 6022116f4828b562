"""From what is seen of a model to its turn: which plan it runs with now, or why none.

Owns: gathering what a plan is made from (facts of all its files, corrections, the running set) and
taking what it takes. Does not own: the plan (``placing.py``), whose turn it is (``contending.py``),
second tries (``second_try.py``). No I/O. Next: ``writing.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.controller.contending import Turn, take_turn
from terrace.controller.corrections import corrections_for
from terrace.controller.diff import mounted_configs
from terrace.controller.facts import Fetch, KnownModel, known_model, persisted_model, read_fetch
from terrace.controller.kinds import CONFIGMAP, Manifest
from terrace.controller.observe import Observed, claim_for, source_uri
from terrace.controller.placing import Decision, hold, running_set, take_pending
from terrace.controller.second_try import second_try
from terrace.planner.inputs import ModelInputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.controller.context import Context
    from terrace.controller.findings import Findings
    from terrace.controller.manifests import Subject
    from terrace.planner.inputs import Correction
    from terrace.planner.room import NoPlacement


def model_fetch(context: Context, seen: Observed) -> Fetch[KnownModel]:
    """Where fetching the model's own file stands."""
    metadata, status = seen.model["metadata"], seen.model.get("status") or {}
    return read_fetch(
        seen.jobs.get(names.fetch_job_name(metadata["name"])),
        seen.pods,
        persisted_model(status.get("model")),
        known_model,
        context.now(),
        context.config.fetch_retry_s,
        claim_for(seen, source_uri(seen.model)),
    )


def turn_of(context: Context, seen: Observed, subject: Subject, found: Findings) -> Turn | None:
    """What the model does now; None while nothing is known of its files."""
    known, extras = found.fetch.known, found.extras
    if known is None:
        return None
    placement = (seen.model.get("status") or {}).get("placement") or {}
    placed_set = str(placement.get("statefulSet", ""))
    running = running_set(seen.sets, placed_set, _orphaned_configs(seen))
    if not extras.are_known:
        config = seen.children.get((CONFIGMAP, running.config)) if running else None
        held = hold(running, config, subject)
        return Turn(held) if held is not None else None
    model = ModelInputs(
        known.facts,
        subject.spec,
        projector=extras.projector_facts,
        draft=extras.draft_facts,
        adapter_bytes=sum(file.file_bytes for file in extras.adapter_facts),
        adapter_digests=tuple(file.digest for file in extras.adapter_facts),
        corrections=_corrections(context, subject, known.facts.digest),
    )
    tried = second_try(subject, model, running, seen.replicas)
    if tried.final is not None:
        return Turn(tried.final)
    turn = take_turn(context, seen, subject, tried.inputs(model), running)
    decision = tried.judged(turn.decision)
    if isinstance(decision, Decision):
        decision = take_pending(decision, subject)
    return replace(turn, decision=decision)


def reserve(context: Context, subject: Subject, decision: Decision | NoPlacement | None) -> None:
    """Before anything is awaited: two workers must not both take the last device."""
    inventory = context.cache.inventory
    if isinstance(decision, Decision):
        inventory.reserve(subject.key, decision.flavor, decision.plan, subject.replicas)
    else:
        inventory.release(subject.key)


def _corrections(context: Context, subject: Subject, digest: str) -> Mapping[str, Correction]:
    """What plans of this file must add, by what replicas of any model took."""
    return corrections_for(context.cache.models_exceeding(digest), digest, subject)


def _orphaned_configs(seen: Observed) -> list[Manifest]:
    mounted = {name for pod in seen.orphans for name in mounted_configs(pod["spec"])}
    found = (seen.children.get((CONFIGMAP, name)) for name in mounted)
    return [config for config in found if config is not None]
