"""Placement and plan of a model: which flavor, why not the others, and what has changed since.

Owns: two steps of the walk, every flavor's verdict on the live nodes. Does not own: deciding
(``planner.placement``), plans (``planner``). Pure. Next: ``explain_replicas.py``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api.conditions import ConditionType, Reason
from terrace.api.file_status import AdapterStatus
from terrace.api.model import ModelSpec
from terrace.api.plan_status import PlanStatus
from terrace.api.pool import PoolSpec
from terrace.cli.advice import About, command_for
from terrace.cli.conditions import condition
from terrace.cli.explain_file import known_facts, known_projector
from terrace.cli.walk import Scene, State, Step
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.controller.placing import running_set
from terrace.controller.plan_status import difference
from terrace.planner.candidates import candidates
from terrace.planner.inputs import ModelInputs
from terrace.planner.nodes import format_bytes
from terrace.planner.placement import Placement, place
from terrace.planner.sticky import inputs_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.pool import Flavor
    from terrace.planner.inputs import Cluster
    from terrace.planner.nodes import NodeFacts


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything that planning the model anew takes."""

    inputs: ModelInputs
    pool: PoolSpec
    cluster: Cluster


def subject_of(scene: Scene) -> Subject | None:
    """None where the file, the pool or a valid spec is missing."""
    facts = known_facts(scene)
    if facts is None or scene.seen.pool is None:
        return None
    try:
        spec = parse_spec(ModelSpec, scene.seen.model)
        pool = parse_spec(PoolSpec, scene.seen.pool)
    except InvalidSpecError:
        return None
    learned = scene.learned
    adapters = tuple(_adapters(scene, spec))
    inputs = ModelInputs(
        facts,
        spec,
        projector=known_projector(scene),
        draft=known_facts(scene, "draft"),
        adapter_bytes=sum(each.file_bytes for each in adapters),
        adapter_digests=tuple(each.digest for each in adapters),
        corrections=learned.installed.corrections(learned.cache, facts.digest, spec, pool),
    )
    return Subject(inputs, pool, scene.cluster)


def _adapters(scene: Scene, spec: ModelSpec) -> Iterator[AdapterStatus]:
    """What is fetched of the adapters, in the order of the spec, as the operator counts them."""
    stored = (scene.seen.model.get("status") or {}).get("adapters") or ()
    known = {}
    for each in stored:
        with suppress(ValidationError):
            status = AdapterStatus.model_validate(each)
            known[status.name] = status
    yield from (known[each.name] for each in spec.adapters if each.name in known)


def placement_step(scene: Scene, about: About) -> Step:
    """Is there a flavor, and if not: what does each lack?"""
    found = condition(scene.seen.model, ConditionType.PLACED)
    if not found.status:
        return Step("placement", State.WAITING, "the operator has not looked at it yet")
    if found.is_true:
        return Step("placement", State.DONE, found.message)
    if found.reason == Reason.WAITING_FOR_FACTS:
        return Step("placement", State.WAITING, "waits for the facts of the file", found.reason)
    subject = subject_of(scene)
    details = tuple(flavor_verdicts(subject)) if subject and subject.cluster.nodes else ()
    if not subject or not subject.cluster.nodes:
        details = ("the nodes may not be read, so no flavor is judged here",) * bool(
            subject and scene.gaps
        )
    command = command_for(found.reason, about)
    return Step("placement", State.STUCK, found.message, found.reason, details, command)


def plan_step(scene: Scene) -> Step:
    """The numbers that replicas run with."""
    status = plan_of(scene)
    if status is None:
        return Step("plan", State.WAITING, "waits for a placement")
    summary = (
        f"{status.parallel} x {status.context:,} tokens, weights {status.weights or 'mapped'}, "
        f"{status.kv_types.key}/{status.kv_types.value} cells, {_threads(status.threads)}, memory "
        f"limit {_size(status.limits.memory)}"
    )
    return Step("plan", State.DONE, summary)


def plan_of(scene: Scene) -> PlanStatus | None:
    """``status.plan``; None while there is none that can be read."""
    stored = (scene.seen.model.get("status") or {}).get("plan")
    if not stored:
        return None
    try:
        return PlanStatus.model_validate(stored)
    except ValidationError:
        return None


def plan_notes(scene: Scene) -> Iterator[str]:
    """Which plan waits, why it does, and whether the inputs changed since this one was made."""
    status, subject = plan_of(scene), subject_of(scene)
    if status is not None and status.pending is not None:
        yield (
            f"a better plan waits ({status.pending.digest[:12]}: {status.pending.reason}): nodes "
            "or what was learned changed, and that restarts no replica"
        )
    placed = (scene.seen.model.get("status") or {}).get("placement") or {}
    running = running_set(scene.seen.sets, str(placed.get("statefulSet", "")))
    if subject is None or running is None:
        return
    mine = subject.inputs
    now = inputs_digest(
        mine.facts, mine.spec, subject.pool, running.plan.flavor, mine.extra_digests
    )
    if now == running.inputs:
        return
    fresh = place(subject.inputs, subject.pool, subject.cluster)
    if isinstance(fresh, Placement):
        change = difference(running.plan, fresh.plan)
        yield f"the spec or its pool changed since this plan was made: {change}"
    else:
        yield (
            "the spec or its pool changed since this plan was made, and with the change it does "
            f"not fit, so replicas go on as they are: {fresh.message}"
        )


def flavor_verdicts(subject: Subject) -> Iterator[str]:
    """Each flavor of the pool on the live nodes, and the node that is nearest."""
    for flavor in subject.pool.flavors:
        alone = subject.pool.model_copy(update={"flavors": [flavor]})
        result = place(subject.inputs, alone, subject.cluster)
        if isinstance(result, Placement):
            plan = result.plan
            yield (
                f"flavor {flavor.name} would fit now: {plan.parallel} x {plan.context_tokens:,} "
                f"tokens in {format_bytes(plan.memory_limit_bytes)}"
            )
            continue
        # What is about no flavor, or about the only one, the condition has said.
        is_about_it = result.message.startswith(f"flavor {flavor.name}")
        if is_about_it and len(subject.pool.flavors) > 1:
            yield result.message
        nearest = nearest_node(flavor, subject.cluster.nodes)
        if nearest:
            yield f"  nearest to flavor {flavor.name}: {nearest}"


def nearest_node(flavor: Flavor, nodes: tuple[NodeFacts, ...]) -> str:
    """The largest node that is not of the flavor, and why; empty where the flavor has nodes."""
    if candidates(flavor, nodes).nodes or not nodes:
        return ""
    wanted = flavor.node_selector.items()
    # A node with the labels is nearer than one without.
    best = max(nodes, key=lambda n: (wanted <= n.labels.items(), n.memory_bytes, n.name))
    why = candidates(flavor, [best]).refused.removeprefix("1 ")
    return f"{best.name} with {format_bytes(best.memory_bytes)}, {why}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _size(text: str) -> str:
    return format_bytes(int(text)) if text.isdigit() else text
