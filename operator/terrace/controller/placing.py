"""Which flavor and plan a model runs with now: sticky, and only from its own inputs.

Owns: finding the set that runs the model now, calling the planner, keeping what runs.
Does not own: numbers (``planner``), manifests. Pure. Next: ``manifests.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api import names
from terrace.controller import pods
from terrace.controller.diff import mounted_configs
from terrace.controller.kinds import Manifest, annotations_of, is_controlled_by, labels_of, uid_of
from terrace.controller.shortfall import given_up_words, noted_place, shortage
from terrace.planner.placement import place
from terrace.planner.plan import OffloadPlan
from terrace.planner.rooms import NoPlacement
from terrace.planner.sticky import Change, decide, inputs_digest
from terrace_runtime.contract import RUNTIME_CONFIG_FILE, RuntimeConfig

if TYPE_CHECKING:
    from terrace.api.pool import Flavor, PoolSpec
    from terrace.controller.manifests import Subject
    from terrace.planner.correction import Place
    from terrace.planner.inputs import Cluster, ModelInputs


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan to run, and the better one that waits for a reason to restart."""

    flavor: Flavor
    plan: OffloadPlan
    pending: OffloadPlan | None = None
    evicted: str = ""
    """A flavor whose replicas go at once: for a stronger model, because no node took them, or since
    those of ``flavor`` wait for what they have."""
    held: RuntimeConfig | None = None
    """What replicas go on with while a file is fetched that they will need; None: no such wait."""
    given_up: Place | None = None
    """Where the plan is too small, with no further try: the set is left without replicas."""
    given_up_words: str = ""
    """Why, with numbers and the way out."""


@dataclass(frozen=True, slots=True)
class Running:
    """The StatefulSet that runs the model, and the plan it was made from."""

    carrier: Manifest
    """The set or, while it is made anew, the ConfigMap of the pods that wait for it."""
    plan: OffloadPlan
    inputs: str

    @property
    def config(self) -> str:
        """Name of the ConfigMap that its pods mount."""
        template = (self.carrier.get("spec") or {}).get("template")
        if template is None:
            return str(self.carrier["metadata"]["name"])
        return min(mounted_configs(template["spec"]), default="")


def running_set(
    sets: list[Manifest], placed_set: str, orphaned: list[Manifest] | None = None
) -> Running | None:
    """The set that status.placement names, else the newest; None when no plan can be read.

    ``orphaned``: ConfigMaps of replicas without a set, which tell the plan where no set does.
    """
    return _newest(sets, placed_set) or _newest(orphaned or [], "")


def _newest(carriers: list[Manifest], preferred: str) -> Running | None:
    by_preference = sorted(
        carriers,
        key=lambda s: (
            s["metadata"]["name"] == preferred,
            str(s["metadata"].get("creationTimestamp", "")),
        ),
        reverse=True,
    )
    for carrier in by_preference:
        annotations = annotations_of(carrier)
        try:
            plan = OffloadPlan.model_validate_json(annotations.get(names.ANNOTATION_PLAN, ""))
        except ValidationError:
            continue  # Written by a newer operator, or edited: plan anew.
        return Running(carrier, plan, annotations.get(names.ANNOTATION_INPUTS, ""))
    return None


def hold(running: Running | None, config: Manifest | None, subject: Subject) -> Decision | None:
    """What runs goes on as it is, whatever the spec says by now; None where it cannot.

    ``config``: the ConfigMap that the running set mounts.
    """
    flavors = {flavor.name: flavor for flavor in subject.pool.flavors}
    if running is None or config is None or running.plan.flavor not in flavors:
        return None
    if labels_of(running.carrier).get(names.LABEL_POOL) != subject.pool_name:
        return None  # It mounts another pool's cache, and is left alone altogether.
    try:
        told = RuntimeConfig.model_validate_json(config["data"][RUNTIME_CONFIG_FILE])
    except (KeyError, ValidationError):
        return None
    told = told.model_copy(update={"trust_key": subject.trust_key})
    flavor, noted = flavors[running.plan.flavor], noted_place(running.carrier)
    decision = Decision(flavor, running.plan)
    if noted is not None:
        decision = give_up(decision, noted)
    return replace(decision, held=told)


def give_up(decision: Decision, where: Place, *, has_room: bool = True) -> Decision:
    """The plan stays, without replicas; ``has_room``: there was room for the next try."""
    words = given_up_words(decision.plan, where, has_room=has_room)
    return replace(decision, pending=None, given_up=where, given_up_words=words)


def take_pending(decision: Decision, subject: Subject) -> Decision:
    """The plan that waits, where the user has asked for it by its digest.

    Replicas are replaced one by one. Once it runs, the request means nothing: another plan that
    waits has another digest.
    """
    waits = decision.pending
    wanted = str(annotations_of(subject.model).get(names.ANNOTATION_TAKE_PLAN, ""))
    if waits is None or len(wanted) < names.MIN_DIGEST_DIGITS:
        return decision
    if not waits.digest.startswith(wanted):
        return decision
    flavor = next(each for each in subject.pool.flavors if each.name == waits.flavor)
    return replace(decision, flavor=flavor, plan=waits, pending=None)


def decide_placement(
    model: ModelInputs,
    pool: PoolSpec,
    cluster: Cluster,
    running: Running | None,
    replicas: list[Manifest],
) -> Decision | NoPlacement:
    """Keep the running plan unless its own inputs changed or it does not fit."""
    fresh = place(model, pool, cluster)
    if running is None:
        if isinstance(fresh, NoPlacement):
            return fresh
        return Decision(fresh.flavor, fresh.plan)
    flavor = next((f for f in pool.flavors if f.name == running.plan.flavor), None)
    inputs = inputs_digest(model.facts, model.spec, pool, running.plan.flavor, model.extra_digests)
    if flavor is not None and inputs == running.inputs and _is_homeless(running, replicas):
        # Another flavor has its turn after a bound (moving.py); or both would change for ever.
        fresh = place(model, pool.model_copy(update={"flavors": [flavor]}), cluster)
    if isinstance(fresh, NoPlacement):
        # What runs is proof enough that it fits; only a change of its inputs needs room anew.
        if flavor is not None and inputs == running.inputs:
            return Decision(flavor, running.plan)
        return fresh
    fits = _fits(running, replicas)
    verdict = decide(running.plan, running.inputs, fresh.plan, inputs, current_fits=fits)
    if isinstance(verdict, Change) or flavor is None:
        return Decision(fresh.flavor, fresh.plan)
    return Decision(flavor, verdict.plan, verdict.pending)


def _fits(running: Running, replicas: list[Manifest]) -> bool:
    if shortage(running.carrier, running.plan, replicas) is not None:
        return False
    # Nothing healthy is at stake where no replica has found a node.
    return not _is_homeless(running, replicas)


def _is_homeless(running: Running, replicas: list[Manifest]) -> bool:
    own = [pod for pod in replicas if is_controlled_by(pod, uid_of(running.carrier))]
    return bool(own) and all(pods.unschedulable(pod) is not None for pod in own)
