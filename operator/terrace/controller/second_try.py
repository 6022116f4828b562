"""A plan that proved too small is made anew once, with a correction, and then given up.

Owns: which try this is and what the next one is given. Does not own: finding out that a plan was
too small (``shortfall.py``), the correction (``planner/correction.py``), the placement
(``placing.py``). Pure. Everything is read from the StatefulSet: the plan in its annotation says
which try it is. Next: ``reconcile.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.controller.placing import Decision, Running, give_up
from terrace.controller.shortfall import images_of, noted_place, shortage
from terrace.planner.correction import MAX_ATTEMPT, Place, after_kill, applied, joined
from terrace.planner.sticky import inputs_digest

if TYPE_CHECKING:
    from terrace.api.pool import Flavor
    from terrace.controller.kinds import Manifest
    from terrace.controller.manifests import Subject
    from terrace.planner.inputs import ModelInputs
    from terrace.planner.room import NoPlacement


@dataclass(frozen=True, slots=True)
class SecondTry:
    """How the running plan did; nothing is remembered of one whose inputs have changed since."""

    running: Running | None = None
    flavor: Flavor | None = None
    place: Place | None = None
    """Where it was too small."""

    @property
    def final(self) -> Decision | None:
        """What holds without placing anew: there is no further try."""
        if self.running is None or self.flavor is None or self.place is None:
            return None
        plan = self.running.plan
        if plan.attempt < MAX_ATTEMPT:
            return None
        return give_up(Decision(self.flavor, plan), self.place)

    def inputs(self, model: ModelInputs) -> ModelInputs:
        """What the next plan is made from: more than a plan that was too small had."""
        if self.running is None:
            return model
        plan = self.running.plan
        if self.place is not None:
            correction = joined((model.correction, after_kill(plan, self.place)))
            return replace(model, attempt=plan.attempt + 1, correction=correction)
        if not plan.attempt:
            return model
        # What was guessed after a kill holds: without it this would be the plan that failed.
        correction = joined((model.correction, applied(plan)))
        return replace(model, attempt=plan.attempt, correction=correction)

    def judged(self, decision: Decision | NoPlacement) -> Decision | NoPlacement:
        """``decision``, made from ``inputs``; a plan kept although it is too small is given up."""
        if self.running is None or self.place is None or not isinstance(decision, Decision):
            return decision
        is_kept = decision.plan.digest == self.running.plan.digest
        return give_up(decision, self.place, has_room=False) if is_kept else decision


def second_try(
    subject: Subject, model: ModelInputs, running: Running | None, replicas: list[Manifest]
) -> SecondTry:
    """Judge what runs ``model``, if it was made from what is wanted now."""
    if running is None:
        return SecondTry()
    plan = running.plan
    flavor = next((f for f in subject.pool.flavors if f.name == plan.flavor), None)
    inputs = inputs_digest(model.facts, model.spec, subject.pool, plan.flavor, model.extra_digests)
    if flavor is None or inputs != running.inputs:
        return SecondTry()
    image = subject.installation.image_of(flavor, plan.device)
    if noted_place(running.carrier) and image not in images_of(running.carrier):
        return SecondTry(running, flavor)  # Another build may do with what there is.
    return SecondTry(running, flavor, shortage(running.carrier, plan, replicas))
