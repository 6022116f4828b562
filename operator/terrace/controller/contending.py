"""One model's placement among the models it shares devices with.

Owns: the order: give up what a stronger model claims, wait for what a weaker one has, else place
and keep (``placing.py``). Does not own: any of these. Pure but for reading the cache. Next:
``reconcile.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from terrace.api.conditions import ConditionType, Reason
from terrace.api.names import Key
from terrace.controller.contest import Claim
from terrace.controller.holders import holders_of
from terrace.controller.moving import (
    Eviction,
    give_way,
    homeless_left_s,
    in_the_way,
    move_on,
)
from terrace.controller.placing import Decision, Running, decide_placement
from terrace.planner.inputs import Cluster
from terrace.planner.preemption import find_swap
from terrace.planner.room import NoPlacement

if TYPE_CHECKING:
    from terrace.controller.context import Context
    from terrace.controller.kinds import Manifest
    from terrace.controller.manifests import Subject
    from terrace.controller.observe import Observed
    from terrace.planner.inputs import ModelInputs

DRAIN_LOOK_S = 10.0
"""When to look again at replicas that drain; their end is an event as well."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a model stands: its placement, and what it waits for."""

    decision: Decision | NoPlacement
    claim: Claim | None = None
    """What it waits to get from weaker models."""
    look_in_s: float | None = None
    """When time alone may change this."""
    wake: tuple[Key, ...] = ()
    """Models that have to give up devices now."""


def take_turn(
    context: Context, seen: Observed, subject: Subject, model: ModelInputs, running: Running | None
) -> Turn:
    """Place a model, or say for whom it makes room or whom it waits for.

    Its claim holds from here on: nothing is awaited before weaker models see it.
    """
    turn = _turn(context, seen, subject, model, running)
    context.contest.settle(subject.key, turn.claim)
    return turn


def _turn(
    context: Context, seen: Observed, subject: Subject, model: ModelInputs, running: Running | None
) -> Turn:
    key, now, contest = subject.key, context.now(), context.contest
    context.count_plan()
    priority = model.spec.priority or 0
    used = contest.reserved(seen.used, key, subject.pool_name, priority)
    cluster = Cluster(tuple(seen.nodes), used, subject.accelerators)
    if running is None:
        waiting = _wait_for_weaker(context, subject, model, cluster)
        if waiting is not None:
            return waiting
    left_s: float | None = None
    decision: Decision | NoPlacement | None = None
    older = ""
    if running is not None:
        left_s = homeless_left_s(running, seen.replicas, now, context.config.pending_s)
        if left_s is not None and left_s <= 0:
            older = in_the_way(model, subject.pool, cluster, running.plan.flavor, seen.pods)
        decision = _leave(context, subject, model, cluster, running, None if older else left_s)
    if decision is None:
        decision = decide_placement(model, subject.pool, cluster, running, seen.replicas)
        if older and isinstance(decision, Decision) and decision.flavor.name != older:
            decision = replace(decision, evicted=older)
    if isinstance(decision, NoPlacement) and decision.missing_devices:
        decision = _still_preempted(seen.model, decision)
    return Turn(decision, look_in_s=left_s if left_s is not None and left_s > 0 else None)


def _leave(
    context: Context,
    subject: Subject,
    model: ModelInputs,
    cluster: Cluster,
    running: Running,
    left_s: float | None,
) -> Decision | NoPlacement | None:
    """What comes after a flavor that the model must leave; None where it stays."""
    flavor, now = running.plan.flavor, context.now().timestamp()
    claim = context.contest.against(subject.key)
    if claim is not None and claim.swap.flavor.name == flavor:
        is_stronger = claim.priority > (model.spec.priority or 0)
        if is_stronger and claim.swap.at <= now:
            eviction = Eviction(flavor, claim.claimant.name, claim.priority)
            return give_way(model, subject.pool, cluster, eviction)
    if left_s is not None and left_s <= 0:
        return move_on(model, subject.pool, cluster, flavor, context.config.pending_s)
    return None


def _wait_for_weaker(
    context: Context, subject: Subject, model: ModelInputs, cluster: Cluster
) -> Turn | None:
    """Claim the devices of weaker models, where that is what it takes."""
    pool = Key(subject.key.namespace, subject.pool_name)
    others = context.cache.priorities_in_pool(pool)
    priority = model.spec.priority or 0
    if all(theirs >= priority for other, theirs in others.items() if other != subject.key):
        return None
    holders = holders_of(context.cache, pool, subject.key)
    swap = find_swap(model, subject.pool, cluster, holders)
    if swap is None:
        return None
    claim = Claim(subject.key, subject.pool_name, priority, swap)
    left_s = swap.at - context.now().timestamp()
    whose = ", ".join(f"{each.name} (priority {each.priority})" for each in swap.victims)
    keeps = "drains now"
    if left_s > 0:
        until = datetime.fromtimestamp(swap.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        keeps = f"keeps them until {until} (minResidenceSeconds)"
    message = (
        f"flavor {swap.flavor.name}: priority {priority} takes the devices of {whose}, which "
        f"{keeps}"
    )
    decision = NoPlacement(Reason.NO_NODE_FITS, message, missing_devices=swap.devices)
    if left_s > 0:
        return Turn(decision, claim, left_s)
    return Turn(decision, claim, DRAIN_LOOK_S, claim.victims)


def _still_preempted(model: Manifest, decision: NoPlacement) -> NoPlacement:
    """Who lost devices says so until it is placed again."""
    if decision.reason == Reason.PREEMPTED:
        return decision
    for condition in (model.get("status") or {}).get("conditions") or ():
        is_ours = condition.get("type") == ConditionType.PLACED
        if is_ours and condition.get("reason") == Reason.PREEMPTED:
            why = str(condition.get("message", "")).partition("; ")[0]
            return NoPlacement(
                Reason.PREEMPTED,
                f"{why}; {decision.message}",
                decision.missing_bytes,
                decision.missing_devices,
            )
    return decision
