"""Making the cluster as it was decided: render, diff, apply, and the next step of a rollout.

Owns: the order of these writes. Does not own: manifests (``manifests.py``), what differs
(``diff.py``), which pod goes next (``rollout.py``), the status (``status.py``). Every step may be
the last before a kill. Next: ``reconcile.py`` reports.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key, statefulset_name
from terrace.controller.apply import carry_out, remove
from terrace.controller.diff import diff, leftovers
from terrace.controller.kinds import BUDGET, POD, STATEFULSET, uid_of
from terrace.controller.manifests import Subject, model_children, plan_label, replica_claims
from terrace.controller.placing import Decision
from terrace.controller.port import ForbiddenError, InvalidError
from terrace.controller.replica_claims import claim_steps
from terrace.controller.replica_config import runtime_config
from terrace.controller.rollout import rollout_step
from terrace.planner.candidates import candidates

if TYPE_CHECKING:
    from terrace.api.pool import Flavor, PoolSpec
    from terrace.controller.context import Context
    from terrace.controller.diff import Removal, Write
    from terrace.controller.findings import Findings
    from terrace.controller.kinds import Kind, Manifest
    from terrace.controller.observe import Observed
    from terrace_runtime.contract import RuntimeConfig


async def write(
    context: Context,
    seen: Observed,
    subject: Subject,
    found: Findings,
    *,
    is_hurried: bool = False,
) -> Findings:
    """Bring the children to ``found.decision``; raises what the API server answers.

    ``is_hurried``: another look follows soon. It gets what nobody waits for: budgets, which protect
    replicas once they run, and leftovers.
    """
    cluster, cache = context.cluster, context.cache
    decision = found.decision if isinstance(found.decision, Decision) else None
    plan = decision.plan if decision else None
    config = _config(subject, found, decision)
    wanted = model_children(subject, _fetch_flavor(seen, subject.pool), plan, config)
    refetch = _to_refetch(subject, found)
    if plan is not None:
        # First: where a claim cannot grow, nothing else changes either.
        set_name = statefulset_name(subject.key.name, plan.flavor)
        await _keep_claims(context, seen, set_name, replica_claims(subject, plan))
    await _keep_children(context, seen, wanted, refetch, is_hurried=is_hurried)
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


async def _keep_children(
    context: Context,
    seen: Observed,
    wanted: list[tuple[Kind, Manifest]],
    refetch: set[str],
    *,
    is_hurried: bool,
) -> None:
    asked = [each for each in wanted if not (is_hurried and each[0] == BUDGET)]
    steps: list[Write | Removal] = diff(asked, seen.children, refetch=refetch)
    await carry_out(context.cluster, context.cache, uid_of(seen.model), steps)
    if not is_hurried:
        steps = [*leftovers(wanted, seen.children, seen.pods)]
        await carry_out(context.cluster, context.cache, uid_of(seen.model), steps)


def _config(subject: Subject, found: Findings, decision: Decision | None) -> RuntimeConfig | None:
    if decision is None or found.fetch.known is None:
        return None
    return decision.held or runtime_config(subject, found.fetch.known, found.extras, decision.plan)


def _to_refetch(subject: Subject, found: Findings) -> set[str]:
    jobs = {file.job for file, fetch in found.extras.fetches if fetch.must_rerun}
    own = {names.fetch_job_name(subject.key.name)} if found.fetch.must_rerun else set()
    return jobs | own


async def _keep_claims(
    context: Context, seen: Observed, set_name: str, wanted: list[Manifest]
) -> None:
    grown = claim_steps(seen.model, seen.replica_claims, set_name, wanted)
    try:
        await carry_out(context.cluster, context.cache, uid_of(seen.model), [*grown])
    except (InvalidError, ForbiddenError) as error:
        raise InvalidError(
            f"{error}; set offload.maxDisk or the pool's modelCache.size back, or delete the claim "
            "and its pod for a new one"
        ) from error


def _fetch_flavor(seen: Observed, pool: PoolSpec) -> Flavor:
    # The first pod that mounts a local volume ties it to a node: let that be one that can serve.
    open_to = (flavor for flavor in pool.flavors if candidates(flavor, seen.nodes).nodes)
    return next(open_to, pool.flavors[0])
