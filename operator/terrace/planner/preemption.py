"""Who gives up devices for a model of higher priority, and when.

Owns: choosing the fewest and least important holders whose devices make room, their residence.
Does not own: room (``placement.py``), carrying it out (``controller/contest.py``). Pure; times are
seconds of any one clock. Next: ``controller/contest.py``.

A holder goes only for a strictly higher priority and after its flavor's ``minResidenceSeconds``, so
each change of a device raises the priority of who has it: with no model arriving, none swaps twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from terrace.planner.accelerators import CPU
from terrace.planner.inputs import Cluster, Usage
from terrace.planner.placement import Placement, place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from terrace.api.pool import Flavor, PoolSpec
    from terrace.planner.inputs import ModelInputs

DEFAULT_RESIDENCE_S = 300
MAX_TRIES = 16
"""Most sets of holders that are tried for one flavor; each is a planning."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A model that has devices of the pool."""

    name: str
    """As people call it."""
    priority: int
    flavor: str
    since: float
    """When its replicas began to answer, or to start."""
    resource: str
    devices: Mapping[str, int]
    """Node or, not bound yet, ``unbound`` flavor -> devices, as in Usage."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Node or ``unbound`` flavor -> bytes, as in Usage."""
    is_leaving: bool = False
    """Its replicas drain and do not come back."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Whose devices a model gets, and from when on."""

    flavor: Flavor
    resource: str
    devices: int
    """Devices of one replica."""
    victims: tuple[Holder, ...]
    at: float
    """When the residence of all of them is over; 0: they drain already."""


def find_swap(
    model: ModelInputs, pool: PoolSpec, cluster: Cluster, holders: Sequence[Holder]
) -> Swap | None:
    """The first flavor where holders that drain, or that are weaker, make room; None: none can.

    ``cluster.used`` counts the holders. Flavors after one where the model fits without any swap are
    not looked at: fitting comes before taking.
    """
    priority = model.spec.priority or 0
    leaving = [each for each in holders if each.is_leaving]
    weaker = [each for each in holders if each.priority < priority and not each.is_leaving]
    if not weaker and not leaving:
        return None
    for flavor in pool.flavors:
        alone = pool.model_copy(update={"flavors": [flavor]})
        if isinstance(place(model, alone, cluster), Placement):
            return None
        if flavor.accelerator == CPU:
            continue
        # What drains is as good as free: nobody else has to go for it.
        drained = [each for each in leaving if each.flavor == flavor.name]
        left = replace(cluster, used=without(cluster.used, drained))
        if drained and isinstance(place(model, alone, left), Placement):
            return Swap(flavor, drained[0].resource, flavor.count or 1, tuple(drained), 0)
        victims = _victims(model, alone, left, [e for e in weaker if e.flavor == flavor.name])
        if victims:
            residence = flavor.min_residence_seconds
            residence = DEFAULT_RESIDENCE_S if residence is None else residence
            at = max(each.since for each in victims) + residence
            return Swap(flavor, victims[0].resource, flavor.count or 1, victims, at)
    return None


def without(used: Usage, holders: Sequence[Holder]) -> Usage:
    """What is used once these holders are gone."""
    memory = Counter(used.memory)
    devices = {resource: Counter(by_place) for resource, by_place in used.devices.items()}
    for holder in holders:
        memory.subtract(holder.memory)
        devices.setdefault(holder.resource, Counter()).subtract(holder.devices)
    return Usage(
        {place: max(0, size) for place, size in memory.items()},
        {
            resource: {place: max(0, count) for place, count in by_place.items()}
            for resource, by_place in devices.items()
        },
    )


def _victims(
    model: ModelInputs, pool: PoolSpec, cluster: Cluster, holders: Sequence[Holder]
) -> tuple[Holder, ...]:
    """The least important holders that make room: one if one is enough, else as few as it takes."""

    def fits(gone: Sequence[Holder]) -> bool:
        left = replace(cluster, used=without(cluster.used, gone))
        return isinstance(place(model, pool, left), Placement)

    # Least important first; of equals, who has fewest devices, then who came last.
    ranked = sorted(
        holders,
        key=lambda each: (each.priority, sum(each.devices.values()), -each.since, each.name),
    )[: MAX_TRIES // 2]
    for one in ranked:
        if fits((one,)):
            return (one,)
    gone: list[Holder] = []
    for one in ranked:
        gone.append(one)
        if len(gone) > 1 and fits(gone):
            break
    else:
        return ()
    for one in gone[:-1]:
        fewer = [each for each in gone if each is not one]
        if fits(fewer):
            gone = fewer
    return tuple(gone)
