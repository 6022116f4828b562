"""Which flavor a model gets, and with what plan: the first flavor with a node it fits on.

Owns: the order of flavors, which of a flavor's rooms. Does not own: bytes (``footprint.py``), what
a flavor has (``rooms.py``), what goes where (``shapes.py``), words when nothing fits
(``shortage.py``), binding (kube-scheduler). Pure. Next: ``planned.py``, then ``sticky.decide``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.offload import overridden
from terrace.planner.device_sizes import fuller
from terrace.planner.footprint import footprint
from terrace.planner.planned import Fit, planned
from terrace.planner.refusals import refusal_in, refusal_of
from terrace.planner.rooms import NoPlacement, Room, rooms_of
from terrace.planner.shapes import Wish
from terrace.planner.shortage import too_small
from terrace.planner.sticky import inputs_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace.api.pool import Flavor, PoolSpec
    from terrace.planner.device_sizes import Sized
    from terrace.planner.inputs import Cluster, ModelInputs
    from terrace.planner.plan import OffloadPlan


SMALL_UBATCH_TOKENS = 128
"""Most tokens of one graph where larger ones do not fit a device: prompts are read slower."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The flavor a model gets and the plan of its replicas."""

    flavor: Flavor
    plan: OffloadPlan
    tokens_per_second: float = 0.0
    """Expected of one conversation on devices; 0: nothing is expected."""


def place(model: ModelInputs, pool_spec: PoolSpec, cluster: Cluster) -> Placement | NoPlacement:
    """Choose a flavor and a plan."""
    facts, model_spec = model.facts, model.spec
    wish = Wish(model, overridden(pool_spec.offload, model_spec.offload))
    refusal = refusal_of(wish)
    if refusal:
        return refusal
    failures: list[NoPlacement] = []
    for flavor in pool_spec.flavors:
        rooms = rooms_of(flavor, wish.offload, facts, cluster)
        fit = rooms if isinstance(rooms, NoPlacement) else fit_rooms(wish, rooms)
        if isinstance(fit, NoPlacement):
            failures.append(fit)
            continue
        inputs = inputs_digest(facts, model_spec, pool_spec, flavor.name, model.extra_digests)
        skipped = tuple(each.message for each in failures)
        plan = planned(wish.in_room(fit.room), fit, inputs=inputs, skipped=skipped)
        return Placement(flavor, plan, fit.sized.speed)
    return _together(failures)


def fit_rooms(wish: Wish, rooms: Sequence[Room]) -> Fit | NoPlacement:
    """The fastest fit of ``rooms``, which are in order of preference."""
    fits, failures = [], []
    for room in rooms:
        fit = _first_fit(wish, room)
        if isinstance(fit, Fit):
            fits.append(fit)
        else:
            failures.append(fit)
    if fits:
        return max(fits, key=lambda each: each.sized.speed)
    return min(failures, key=lambda each: each.missing_bytes)


def _first_fit(wish: Wish, room: Room) -> Fit | NoPlacement:
    refusal = refusal_in(wish, room)
    if refusal:
        return refusal
    wish = wish.in_room(room)
    if _is_far_too_small(wish, room):
        return too_small(wish, room)
    wishes = [wish]
    projector = wish.model.projector
    needs_large = projector is not None and projector.rows_at_once > SMALL_UBATCH_TOKENS
    if room.device is not None and not needs_large:
        wishes.append(replace(wish, ubatch_tokens=SMALL_UBATCH_TOKENS))
    fits = (_best_size(each, room) for each in wishes)
    return next((fit for fit in fits if fit), None) or too_small(wishes[-1], room)


def _best_size(wish: Wish, room: Room) -> Fit | None:
    """The first size that fits, with the first of its shapes that does."""
    for preferred in wish.sized(room):
        sized = preferred
        missing = _missing(wish, room, sized)
        if missing > 0 and room.device is not None:
            fallback = fuller(wish, room.device, sized, missing)
            sized, missing = fallback or sized, _missing(wish, room, fallback or sized)
        if missing > 0:
            continue
        for shape in wish.choices(sized.size, sized.split):
            size = footprint(wish.facts, shape, wish.extras_of(sized.size))
            if size.limit_bytes <= room.memory_bytes:
                return Fit(room, sized, shape, size)
    return None


def _is_far_too_small(wish: Wish, room: Room) -> bool:
    """Whether weights alone are more than a room's devices and host, so that no size need be tried.

    Paged weights need no room.
    """
    device = room.device
    if device is None or wish.offload.profile == "DiskHeavy":
        return False
    layers = sum(run.count * run.weight_bytes for run in wish.facts.layers)
    return layers > room.memory_bytes + device.count * device.memory_bytes


def _missing(wish: Wish, room: Room, sized: Sized) -> int:
    """By how many bytes the host is too small for the least shape of one size; 0 or less: not."""
    *_, least = wish.choices(sized.size, sized.split)
    size = footprint(wish.facts, least, wish.extras_of(sized.size))
    return size.limit_bytes - room.memory_bytes


def _together(failures: Sequence[NoPlacement]) -> NoPlacement:
    """All flavors' failures as one."""
    reasons = {each.reason for each in failures}
    return NoPlacement(
        reasons.pop() if len(reasons) == 1 else Reason.NO_NODE_FITS,
        "; ".join(each.message for each in failures),
        min((each.missing_bytes for each in failures if each.missing_bytes), default=0),
        min((each.missing_devices for each in failures if each.missing_devices), default=0),
    )
