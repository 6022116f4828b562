"""When replicas leave a flavor that they have: for want of a node, for a stronger or a newer one.

Owns: these cases and their words. Does not own: who is stronger (``contest.py``), staying
(``placing.py``). Pure. Next: ``contending.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.conditions import Reason
from terrace.controller import pods
from terrace.controller.kinds import Manifest, is_controlled_by, labels_of, uid_of
from terrace.controller.placing import Decision
from terrace.planner.placement import Placement, place
from terrace.planner.room import NoPlacement

if TYPE_CHECKING:
    from terrace.api.pool import PoolSpec
    from terrace.controller.placing import Running
    from terrace.planner.inputs import Cluster, ModelInputs
    from terrace.planner.plan import OffloadPlan


@dataclass(frozen=True, slots=True)
class Eviction:
    """A stronger model gets the devices of a flavor."""

    flavor: str
    claimant: str
    priority: int


def homeless_left_s(
    running: Running, replicas: list[Manifest], now: datetime, bound_s: float
) -> float | None:
    """Seconds until replicas without a node try another flavor; None: one of them has a node."""
    own = [pod for pod in replicas if is_controlled_by(pod, uid_of(running.carrier))]
    since = [pods.homeless_since(pod) for pod in own]
    if not since or not all(since):
        return None
    return bound_s - (now - datetime.fromisoformat(max(since))).total_seconds()


def in_the_way(
    model: ModelInputs, pool: PoolSpec, cluster: Cluster, flavor: str, own: list[Manifest]
) -> str:
    """Another flavor, whose replicas have what those of ``flavor`` wait for; empty: there is none.

    On a node of theirs would be room for one of ``flavor``, were they gone. ``own``: all pods of
    the model, which ``cluster.used`` leaves out.
    """
    alone = pool.model_copy(update={"flavors": [f for f in pool.flavors if f.name == flavor]})
    for pod in own:
        other = labels_of(pod).get(names.LABEL_FLAVOR, flavor)
        if other == flavor or not pods.is_bound(pod) or pods.is_finished(pod):
            continue
        here = tuple(node for node in cluster.nodes if node.name == pod["spec"]["nodeName"])
        if here and isinstance(place(model, alone, replace(cluster, nodes=here)), Placement):
            return other
    return ""


def move_on(
    model: ModelInputs, pool: PoolSpec, cluster: Cluster, stuck: str, bound_s: float
) -> Decision | None:
    """Another flavor than the one whose nodes do not take the replicas; None where none fits.

    The replicas that no node took go: should it be that flavor's turn again, they wait anew.
    """
    others = [flavor for flavor in pool.flavors if flavor.name != stuck]
    if not others:
        return None
    fresh = place(model, pool.model_copy(update={"flavors": others}), cluster)
    if isinstance(fresh, NoPlacement):
        return None
    why = f"flavor {stuck}: none of its nodes took a replica for {bound_s:.0f} s"
    return Decision(fresh.flavor, _because(fresh.plan, why), evicted=stuck)


def give_way(
    model: ModelInputs, pool: PoolSpec, cluster: Cluster, eviction: Eviction
) -> Decision | NoPlacement:
    """What a model gets that loses its devices: another flavor or nothing."""
    own = model.spec.priority or 0
    why = (
        f"{eviction.claimant} (priority {eviction.priority}) took the devices of flavor "
        f"{eviction.flavor} from this model (priority {own})"
    )
    others = [flavor for flavor in pool.flavors if flavor.name != eviction.flavor]
    if not others:
        hint = "raise spec.priority, or add a node or a flavor"
        return NoPlacement(Reason.PREEMPTED, f"{why}; {hint}", missing_devices=1)
    fresh = place(model, pool.model_copy(update={"flavors": others}), cluster)
    if isinstance(fresh, NoPlacement):
        return NoPlacement(Reason.PREEMPTED, f"{why}; {fresh.message}", fresh.missing_bytes, 1)
    return Decision(fresh.flavor, _because(fresh.plan, why), evicted=eviction.flavor)


def _because(plan: OffloadPlan, why: str) -> OffloadPlan:
    return plan.model_copy(update={"reasons": (why, *plan.reasons)})
