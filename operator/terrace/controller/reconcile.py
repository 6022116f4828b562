"""One model, once: parse -> observe -> place -> render -> diff -> apply -> report.

Owns: the order of the steps. Does not own: any of them. Level-triggered: it looks at what is, not
at what happened, so it may run at any time, be killed anywhere and run again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.conditions import Reason
from terrace.api.model import ModelSpec
from terrace.api.names import Key, statefulset_name
from terrace.api.pool import Flavor, PoolSpec
from terrace.controller.apply import ForeignObjectError, carry_out, remove
from terrace.controller.contending import Turn, take_turn
from terrace.controller.context import Context, Outcome
from terrace.controller.corrections import corrections_for
from terrace.controller.diff import diff, leftovers, mounted_configs
from terrace.controller.facts import Fetch, KnownModel, known_model, persisted_model, read_fetch
from terrace.controller.files import read_extras
from terrace.controller.findings import Findings
from terrace.controller.kinds import (
    CONFIGMAP,
    MODEL,
    POD,
    STATEFULSET,
    Manifest,
    is_deleting,
    key_of,
    labels_of,
    uid_of,
)
from terrace.controller.kv_claims import claim_steps
from terrace.controller.manifests import Subject, model_children, plan_label
from terrace.controller.observe import Observed, claim_for, observe, pool_name, source_uri
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.controller.placing import Decision, hold, running_set, take_pending
from terrace.controller.port import ForbiddenError, InvalidError, NotFoundError
from terrace.controller.replica_config import runtime_config
from terrace.controller.rollout import rollout_step
from terrace.controller.second_try import second_try
from terrace.controller.status import model_status, status_patch
from terrace.controller.unused import collects, used_files
from terrace.planner.inputs import ModelInputs
from terrace.planner.room import NoPlacement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.planner.inputs import Correction
    from terrace.planner.plan import OffloadPlan
    from terrace_runtime.contract import RuntimeConfig

BLOCKED_RETRY_S = 60.0
"""When to look again at what somebody else must change and we get no event for."""


async def reconcile_model(context: Context, key: Key) -> Outcome:
    """Bring one model closer to its spec and say where it stands."""
    seen = observe(context.cache, key)
    if seen is None or is_deleting(seen.model):
        context.contest.settle(key, None)
        return Outcome()  # Owner references clean up.
    found = await _converge(context, seen)
    if found.turn is None:
        context.contest.settle(key, None)
    if found.download is not None:
        _, pod = found.download
        found = replace(found, progress=await context.progress.read(pod))
    found = replace(found, report=context.reports.of(found.ready))
    await _report(context, seen, found)
    # After the status: who is killed between would not know why it has nothing.
    for stateful_set in _evicted(seen, found):
        await remove(context.cluster, context.cache, STATEFULSET, stateful_set)
    return replace(_outcome(context, found), collector=_collector(context, seen))


async def _converge(context: Context, seen: Observed) -> Findings:
    """Every step but the last; what stops one of them is a finding, not an exception."""
    found = Findings(
        seen.claims, tuple(seen.replicas), len(seen.replicas), fetch=_model_fetch(context, seen)
    )
    try:
        spec = parse_spec(ModelSpec, seen.model)
    except InvalidSpecError as error:
        return replace(found, invalid_spec=str(error))
    extras = read_extras(
        seen.model,
        spec,
        seen.jobs,
        seen.pods,
        context.now(),
        context.config.fetch_retry_s,
        lambda uri: claim_for(seen, uri),
    )
    wanted_replicas = 1 if spec.replicas is None else spec.replicas
    found = replace(found, wanted_replicas=wanted_replicas, extras=extras)
    if seen.pool is None or is_deleting(seen.pool):
        return replace(found, missing_pool=pool_name(seen.model))
    try:
        pool = parse_spec(PoolSpec, seen.pool)
    except InvalidSpecError as error:
        problem = f"InferencePool {pool_name(seen.model)!r} is not valid: {error}"
        return replace(found, pool_problem=problem)
    subject = Subject(
        seen.model,
        spec,
        pool_name(seen.model),
        pool,
        context.config.runtime_image,
        context.trust_key,
        context.config.runtime_images,
        context.accelerators,
    )
    turn = _place(context, seen, subject, found)
    found = replace(found, turn=turn, decision=turn.decision if turn else None)
    if isinstance(found.decision, Decision):
        subject = replace(subject, given_up=found.decision.given_up)
    _reserve(context, subject, found.decision)
    try:
        return await _write(context, seen, subject, found)
    except ForeignObjectError as error:
        context.cache.inventory.release(subject.key)
        return replace(found, foreign=str(error))
    except (InvalidError, ForbiddenError) as error:
        context.cache.inventory.release(subject.key)
        return replace(found, refused=str(error))


def _model_fetch(context: Context, seen: Observed) -> Fetch[KnownModel]:
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


def _place(context: Context, seen: Observed, subject: Subject, found: Findings) -> Turn | None:
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


def _corrections(context: Context, subject: Subject, digest: str) -> Mapping[str, Correction]:
    """What plans of this file must add, by what replicas of any model took."""
    return corrections_for(context.cache.models_exceeding(digest), digest, subject)


def _reserve(context: Context, subject: Subject, decision: Decision | NoPlacement | None) -> None:
    """Before anything is awaited: two workers must not both take the last device."""
    inventory = context.cache.inventory
    if isinstance(decision, Decision):
        inventory.reserve(subject.key, decision.flavor, decision.plan, subject.replicas)
    else:
        inventory.release(subject.key)


def _orphaned_configs(seen: Observed) -> list[Manifest]:
    mounted = {name for pod in seen.orphans for name in mounted_configs(pod["spec"])}
    found = (seen.children.get((CONFIGMAP, name)) for name in mounted)
    return [config for config in found if config is not None]


async def _write(context: Context, seen: Observed, subject: Subject, found: Findings) -> Findings:
    """Render, diff, apply, and take the next step of a rollout."""
    cluster, cache, owner = context.cluster, context.cache, uid_of(seen.model)
    decision = found.decision if isinstance(found.decision, Decision) else None
    plan = decision.plan if decision else None
    config = _config(subject, found, decision)
    wanted = model_children(subject, _fetch_flavor(seen, subject.pool), plan, config)
    steps = diff(wanted, seen.children, refetch=_to_refetch(subject, found))
    if plan is not None:
        # First: where a claim cannot grow, nothing else changes either.
        set_name = statefulset_name(subject.key.name, plan.flavor)
        await _keep_claims(context, seen, set_name, plan)
    await carry_out(cluster, cache, owner, steps)
    await carry_out(cluster, cache, owner, [*leftovers(wanted, seen.children, seen.pods)])
    if plan is None:
        return found
    set_name = statefulset_name(subject.key.name, plan.flavor)
    target = cache.get(STATEFULSET, Key(subject.key.namespace, set_name))
    others = [s for s in seen.sets if s["metadata"]["name"] != set_name]
    step = rollout_step(target, others, subject.replicas, seen.replicas)
    for pod in step.pods:
        await remove(cluster, cache, POD, pod)
    for stateful_set in step.sets:
        await remove(cluster, cache, STATEFULSET, stateful_set)
    label = plan_label(plan, subject.trust_key)
    image = subject.installation.image_of(decision.flavor, plan.device) if decision else ""
    return replace(found, stateful_set=set_name, wanted_plan=label, image=image)


def _evicted(seen: Observed, found: Findings) -> list[Manifest]:
    """Sets whose devices a stronger model waits for; their replicas drain as they go."""
    decision = found.decision
    if isinstance(decision, NoPlacement):
        # Without a flavor that fits, the model has nothing but what it lost.
        return [*seen.live_sets] if decision.reason == Reason.PREEMPTED else []
    lost = decision.evicted if decision is not None else ""
    return [each for each in seen.live_sets if labels_of(each).get(names.LABEL_FLAVOR) == lost]


def _config(subject: Subject, found: Findings, decision: Decision | None) -> RuntimeConfig | None:
    if decision is None or found.fetch.known is None:
        return None
    return decision.held or runtime_config(subject, found.fetch.known, found.extras, decision.plan)


def _to_refetch(subject: Subject, found: Findings) -> set[str]:
    jobs = {file.job for file, fetch in found.extras.fetches if fetch.must_rerun}
    own = {names.fetch_job_name(subject.key.name)} if found.fetch.must_rerun else set()
    return jobs | own


async def _keep_claims(context: Context, seen: Observed, set_name: str, plan: OffloadPlan) -> None:
    grown = claim_steps(seen.model, seen.kv_claims, set_name, plan.volume)
    try:
        await carry_out(context.cluster, context.cache, uid_of(seen.model), [*grown])
    except (InvalidError, ForbiddenError) as error:
        raise InvalidError(
            f"{error}; set offload.maxDisk back, or delete the claim and its pod for a new one"
        ) from error


def _fetch_flavor(seen: Observed, pool: PoolSpec) -> Flavor:
    # The first pod that mounts a local volume ties it to a node: let that be one that can serve.
    for flavor in pool.flavors:
        wanted = flavor.node_selector.items()
        if any(node.ready and wanted <= node.labels.items() for node in seen.nodes):
            return flavor
    return pool.flavors[0]


async def _report(context: Context, seen: Observed, found: Findings) -> None:
    status = model_status(seen.model, found, context.config.gateway_url, context.now())
    if status == seen.model.get("status"):
        return
    try:
        after = await context.cluster.apply_status(MODEL, status_patch(MODEL, seen.model, status))
    except NotFoundError:
        return  # Deleted meanwhile.
    context.cache.put(MODEL, after)
    context.events.tell(MODEL, after, seen.model, context.now())


def _collector(context: Context, seen: Observed) -> Key | None:
    """The model's pool, where it deletes unused files and the model names others than before."""
    now = context.cache.get(MODEL, key_of(seen.model))
    if seen.pool is None or now is None or not collects(seen.pool):
        return None
    return None if used_files(now) == used_files(seen.model) else key_of(seen.pool)


def _outcome(context: Context, found: Findings) -> Outcome:
    waits = [fetch.rerun_in_s for _, fetch in found.fetches if fetch.rerun_in_s is not None]
    if found.download is not None:
        waits.append(context.progress.interval_s)
    if found.ready:
        waits.append(context.config.report_s)
    if found.foreign or found.refused:
        waits.append(BLOCKED_RETRY_S)
    turn, is_placed = found.turn, isinstance(found.decision, Decision)
    if turn is not None and turn.look_in_s is not None:
        waits.append(max(1.0, turn.look_in_s))
    return Outcome(min(waits, default=None), is_placed, turn.wake if turn else ())
