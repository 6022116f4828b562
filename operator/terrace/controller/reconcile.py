"""One model, once: parse -> observe -> place -> render -> diff -> apply -> report.

Owns: the order of the steps. Does not own: any of them. Level-triggered: it looks at what is, not
at what happened, so it may run at any time, be killed anywhere and run again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.api.model import ModelSpec
from terrace.api.names import Key, statefulset_name
from terrace.api.pool import Flavor, PoolSpec
from terrace.controller import events
from terrace.controller.apply import ForeignObjectError, carry_out, remove
from terrace.controller.context import Context, Outcome
from terrace.controller.diff import diff, leftovers, mounted_configs
from terrace.controller.facts import Fetch, persisted_model, read_fetch
from terrace.controller.findings import Findings
from terrace.controller.kinds import (
    CONFIGMAP,
    MODEL,
    POD,
    STATEFULSET,
    Manifest,
    is_deleting,
    uid_of,
)
from terrace.controller.kv_claims import claim_steps
from terrace.controller.manifests import Subject, model_children, plan_label
from terrace.controller.observe import Observed, observe, pool_name
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.controller.placing import Decision, decide_placement, running_set
from terrace.controller.port import ForbiddenError, InvalidError, NotFoundError
from terrace.controller.rollout import rollout_step
from terrace.controller.status import model_status, status_patch
from terrace.planner.inputs import ModelInputs

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan
    from terrace.planner.rooms import NoPlacement

BLOCKED_RETRY_S = 60.0
"""When to look again at what somebody else must change and we get no event for."""


async def reconcile_model(context: Context, key: Key) -> Outcome:
    """Bring one model closer to its spec and say where it stands."""
    seen = observe(context.cache, key)
    if seen is None or is_deleting(seen.model):
        return Outcome()  # Owner references clean up.
    found = await _converge(context, seen)
    if found.fetch.running_pod is not None and found.fetch.known is None:
        found = replace(found, progress=await context.progress.read(found.fetch.running_pod))
    found = replace(found, report=context.reports.of(found.ready))
    await _report(context, seen, found)
    return _outcome(context, found)


async def _converge(context: Context, seen: Observed) -> Findings:
    """Every step but the last; what stops one of them is a finding, not an exception."""
    stored = persisted_model(seen.model)
    fetch = read_fetch(seen.job, seen.pods, stored, context.now(), context.config.fetch_retry_s)
    found = Findings(seen.claims, tuple(seen.replicas), len(seen.replicas), fetch=fetch)
    try:
        spec = parse_spec(ModelSpec, seen.model)
    except InvalidSpecError as error:
        return replace(found, invalid_spec=str(error))
    found = replace(found, wanted_replicas=1 if spec.replicas is None else spec.replicas)
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
    )
    found = replace(found, decision=_place(seen, subject, fetch))
    try:
        return await _write(context, seen, subject, found)
    except ForeignObjectError as error:
        return replace(found, foreign=str(error))
    except (InvalidError, ForbiddenError) as error:
        return replace(found, refused=str(error))


def _place(seen: Observed, subject: Subject, fetch: Fetch) -> Decision | NoPlacement | None:
    if fetch.known is None:
        return None
    placement = (seen.model.get("status") or {}).get("placement") or {}
    return decide_placement(
        ModelInputs(fetch.known.facts, subject.spec),
        subject.pool,
        seen.nodes,
        seen.used,
        running_set(seen.sets, str(placement.get("statefulSet", "")), _orphaned_configs(seen)),
        seen.replicas,
    )


def _orphaned_configs(seen: Observed) -> list[Manifest]:
    mounted = {name for pod in seen.orphans for name in mounted_configs(pod["spec"])}
    found = (seen.children.get((CONFIGMAP, name)) for name in mounted)
    return [config for config in found if config is not None]


async def _write(context: Context, seen: Observed, subject: Subject, found: Findings) -> Findings:
    """Render, diff, apply, and take the next step of a rollout."""
    cluster, cache, owner = context.cluster, context.cache, uid_of(seen.model)
    plan = found.decision.plan if isinstance(found.decision, Decision) else None
    wanted = model_children(subject, _fetch_flavor(seen, subject.pool), found.fetch.known, plan)
    steps = diff(wanted, seen.children, refetch=found.fetch.must_rerun)
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
    return replace(found, stateful_set=set_name, wanted_plan=label)


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
    await events.post(context.cluster, MODEL, after, seen.model, context.now())


def _outcome(context: Context, found: Findings) -> Outcome:
    waits = []
    if found.fetch.rerun_in_s is not None:
        waits.append(found.fetch.rerun_in_s)
    if found.fetch.running_pod is not None and found.fetch.known is None:
        waits.append(context.progress.interval_s)
    if found.ready:
        waits.append(context.config.report_s)
    if found.foreign or found.refused:
        waits.append(BLOCKED_RETRY_S)
    is_placed = isinstance(found.decision, Decision)
    return Outcome(min(waits, default=None), is_placed)
