"""One model, once: parse -> observe -> place -> render -> diff -> apply -> report.

Owns: the order of the steps. Does not own: any of them. Level-triggered: it looks at what is, not
at what happened, so it may run at any time, be killed anywhere and run again.
"""

from __future__ import annotations

from dataclasses import replace

from terrace.api import names
from terrace.api.conditions import Reason
from terrace.api.model import ModelSpec
from terrace.api.names import Key
from terrace.api.pool import PoolSpec
from terrace.controller import pods
from terrace.controller.apply import ForeignObjectError, PredecessorError, remove
from terrace.controller.context import Context, Outcome
from terrace.controller.deciding import model_fetch, reserve, turn_of
from terrace.controller.files import read_extras
from terrace.controller.findings import Findings
from terrace.controller.kinds import (
    CLAIM,
    MODEL,
    POD,
    STATEFULSET,
    Manifest,
    is_deleting,
    key_of,
    labels_of,
)
from terrace.controller.manifests import Subject
from terrace.controller.model_volumes import cache_claim, is_left_behind
from terrace.controller.observe import Observed, claim_for, observe, pool_name
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.controller.placing import Decision
from terrace.controller.port import ForbiddenError, InvalidError, NotFoundError
from terrace.controller.status import model_status, status_patch
from terrace.controller.unused import collects, used_files
from terrace.controller.writing import write
from terrace.planner.room import NoPlacement

BLOCKED_RETRY_S = 60.0
"""When to look again at what somebody else must change and we get no event for."""
PREDECESSOR_RETRY_S = 5.0
"""The same for what the garbage collector is about to remove."""


async def reconcile_model(context: Context, key: Key, *, tells: bool = True) -> Outcome:
    """Bring one model closer to its spec and, where it ``tells``, say where it stands."""
    seen = observe(context.cache, key)
    if seen is None or is_deleting(seen.model):
        context.contest.settle(key, None)
        return Outcome()  # Owner references clean up.
    found = await _converge(context, seen, tells=tells)
    if found.turn is None:
        context.contest.settle(key, None)
    if tells:
        await _tell(context, seen, found)
    return replace(_outcome(context, found), collector=_collector(context, seen))


async def _tell(context: Context, seen: Observed, found: Findings) -> None:
    if found.download is not None:
        _, pod = found.download
        found = replace(found, progress=await context.progress.read(pod))
    found = replace(found, report=context.reports.of(found.ready))
    await _report(context, seen, found)
    # After the status: who is killed between would not know why it has nothing.
    for pod in _waiting_for_evicted(found):
        await remove(context.cluster, context.cache, POD, pod)
    for stateful_set in _evicted(seen, found):
        await remove(context.cluster, context.cache, STATEFULSET, stateful_set)


async def _converge(context: Context, seen: Observed, *, tells: bool) -> Findings:
    """Every step but the last; what stops one of them is a finding, not an exception."""
    found = Findings(
        seen.claims, tuple(seen.replicas), len(seen.replicas), fetch=model_fetch(context, seen)
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
    claim = context.cache.get(CLAIM, Key(key_of(seen.model).namespace, cache_claim(seen.pool)))
    if claim is not None and is_left_behind(claim, seen.pool) and not seen.replicas:
        # What is fetched into it would go with it.
        return replace(found, predecessor=str(PredecessorError(CLAIM, claim)))
    subject = _subject(context, seen, spec, pool)
    return await _carry_through(context, seen, subject, found, tells=tells)


def _subject(context: Context, seen: Observed, spec: ModelSpec, pool: PoolSpec) -> Subject:
    return Subject(
        seen.model,
        spec,
        pool_name(seen.model),
        pool,
        context.config.runtime_image,
        context.trust_key,
        context.config.runtime_images,
        context.accelerators,
    )


async def _carry_through(
    context: Context, seen: Observed, subject: Subject, found: Findings, *, tells: bool
) -> Findings:
    """Decide and write; a child that cannot be written gives back what was reserved."""
    turn = turn_of(context, seen, subject, found)
    found = replace(found, turn=turn, decision=turn.decision if turn else None)
    if isinstance(found.decision, Decision):
        subject = replace(subject, given_up=found.decision.given_up)
    reserve(context, subject, found.decision)
    try:
        return await write(context, seen, subject, found, is_hurried=not tells)
    except ForeignObjectError as error:
        stopped = replace(found, foreign=str(error))
    except PredecessorError as error:
        stopped = replace(found, predecessor=str(error))
    except (InvalidError, ForbiddenError) as error:
        stopped = replace(found, refused=str(error))
    context.cache.inventory.release(subject.key)
    return stopped


def _evicted(seen: Observed, found: Findings) -> list[Manifest]:
    """Sets whose devices a stronger model waits for; their replicas drain as they go."""
    decision = found.decision
    if isinstance(decision, NoPlacement):
        # Without a flavor that fits, the model has nothing but what it lost.
        return [*seen.live_sets] if decision.reason == Reason.PREEMPTED else []
    lost = decision.evicted if decision is not None else ""
    return [each for each in seen.live_sets if labels_of(each).get(names.LABEL_FLAVOR) == lost]


def _waiting_for_evicted(found: Findings) -> list[Manifest]:
    """Replicas without a node whose flavor gets what another of the model's has.

    They are made anew, and with them the time that they have to find a node.
    """
    decision = found.decision
    if not isinstance(decision, Decision) or not decision.evicted:
        return []
    return [
        pod
        for pod in found.live
        if labels_of(pod).get(names.LABEL_FLAVOR) == decision.flavor.name
        and pods.unschedulable(pod) is not None
    ]


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
    if found.predecessor:
        waits.append(PREDECESSOR_RETRY_S)
    turn, is_placed = found.turn, isinstance(found.decision, Decision)
    if turn is not None and turn.look_in_s is not None:
        waits.append(max(1.0, turn.look_in_s))
    return Outcome(min(waits, default=None), is_placed, turn.wake if turn else ())
