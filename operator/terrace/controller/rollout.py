"""Which pods are replaced now, and which old sets go.

Owns: the order of a rollout: broken ones first, then one at a time while all others are ready; a
new flavor's set is up before the old one goes. Does not own: deleting (``apply.py``). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrace.api import names
from terrace.controller import pods
from terrace.controller.kinds import Manifest, is_controlled_by, is_deleting, uid_of


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """What may be deleted at this moment."""

    pods: tuple[Manifest, ...] = ()
    sets: tuple[Manifest, ...] = ()


def rollout_step(
    target: Manifest | None, others: list[Manifest], replicas: int, all_pods: list[Manifest]
) -> RolloutStep:
    """Judge the live set, the model's other sets and all its replicas.

    Safe on a stale view: a deleted pod counts as not ready until its successor is, so at most one
    ready pod is missing at any time.
    """
    if target is None:
        return RolloutStep()
    own = [pod for pod in all_pods if is_controlled_by(pod, uid_of(target))]
    wanted = template_plan(target)
    current = [pod for pod in own if pods.plan_label(pod) == wanted]
    outdated = sorted(
        (pod for pod in own if pods.plan_label(pod) != wanted and not is_deleting(pod)),
        key=_ordinal,
        reverse=True,
    )
    broken = tuple(pod for pod in outdated if not pods.is_ready(pod))
    ready = [pod for pod in own if pods.is_ready(pod)]
    if broken:
        return RolloutStep(pods=broken)
    if outdated:
        is_settled = len(own) == len(ready) == replicas
        return RolloutStep(pods=tuple(outdated[:1]) if is_settled else ())
    # An old set serves until the new one is up as wanted.
    is_up = sum(map(pods.is_ready, current)) >= replicas
    leaving = tuple(old for old in others if not is_deleting(old))
    return RolloutStep(sets=leaving if is_up else ())


def template_plan(stateful_set: Manifest) -> str:
    """The plan label of the set's pod template."""
    template = stateful_set["spec"]["template"]
    return str(template["metadata"]["labels"].get(names.LABEL_PLAN, ""))


def _ordinal(pod: Manifest) -> int:
    suffix = pod["metadata"]["name"].rpartition("-")[2]
    return int(suffix) if suffix.isdigit() else 0
