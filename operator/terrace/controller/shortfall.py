"""Whether a plan proved too small for its replicas, and the words when there is no further try.

Owns: reading it from pods and from the note on the StatefulSet. Does not own: what follows
(``second_try.py``). Pure. The note is made in the same write that takes the set's replicas away, so
that no operator tries again for having forgotten. Next: ``placing.py``, ``second_try.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api import names
from terrace.controller import pods
from terrace.controller.kinds import Manifest, annotations_of, is_controlled_by, uid_of
from terrace.controller.rollout import template_plan
from terrace.planner.correction import MAX_ATTEMPT, Place, applied
from terrace.planner.nodes import format_bytes
from terrace_runtime.contract import RUNTIME_CONTAINER

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan

_AGAIN = "any change of the spec, and another runtime image, tries again"
_WAY_OUT: dict[Place, str] = {
    "host": (
        "lower spec.context.length, spec.context.parallel or offload.spillThreshold, or give the "
        f"pool's flavor more host.memory; {_AGAIN}"
    ),
    "device": (
        "lower spec.context.length or spec.context.parallel, choose the offload profile Balanced "
        f"or HostHeavy, or larger devices; {_AGAIN}"
    ),
}
_WHAT: dict[Place, str] = {
    "host": "replicas were killed for their memory",
    "device": "the devices were too small for the replicas",
}


def shortage(carrier: Manifest, plan: OffloadPlan, replicas: list[Manifest]) -> Place | None:
    """Where ``plan``, which ``carrier`` runs, was too small; None as long as it was not."""
    noted = noted_place(carrier)
    if noted is not None:
        return noted
    if "template" not in (carrier.get("spec") or {}):
        return None  # The set is made anew around its pods; the next look tells.
    label = template_plan(carrier)
    own = [
        pod
        for pod in replicas
        if is_controlled_by(pod, uid_of(carrier)) and pods.plan_label(pod) == label
    ]
    if plan.attempt >= MAX_ATTEMPT and any(map(pods.is_ready, own)):
        return None  # It can run; the kubelet starts the others again.
    # Also of one that is ready again: how soon we look must not decide what was too small.
    killed = (pods.memory_shortage(pod, RUNTIME_CONTAINER) for pod in own)
    return next((each for each in killed if each is not None), None)


def noted_place(carrier: Manifest) -> Place | None:
    """Where the set's plan was too small when it was given up."""
    noted = annotations_of(carrier).get(names.ANNOTATION_GIVEN_UP, "")
    return noted if noted in _WHAT else None


def images_of(carrier: Manifest) -> set[str]:
    """Images that the set's replicas get."""
    template = (carrier.get("spec") or {}).get("template") or {}
    containers = (template.get("spec") or {}).get("containers") or ()
    return {str(container.get("image")) for container in containers}


def given_up_words(plan: OffloadPlan, place: Place, *, has_room: bool) -> str:
    """Why there is no further try, with numbers and the way out.

    ``has_room``: there was room for the next try.
    """
    correction = applied(plan)
    if place == "host":
        what, more = f"{format_bytes(plan.memory_limit_bytes)}", correction.host_bytes
    else:
        size = plan.device.memory_bytes if plan.device else 0
        what, more = f"{format_bytes(size)} on each", correction.device_bytes
    what = f"{_WHAT[place]} with {what}"
    if more:
        what += f", of which {format_bytes(more)} were added for what was not estimated"
    if not has_room:
        what += ", and no flavor has room for a larger plan"
    return f"{what}; {_WAY_OUT[place]}"
