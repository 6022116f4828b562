"""Who waits for whose devices: claims of models of higher priority on those that run.

Owns: claims, which live in memory and are made anew by the claimant's next reconcile after a
restart; reading holders out of the cache. Does not own: choosing (``planner/preemption.py``),
removing replicas (``reconcile.py``). No I/O. Next: ``placing.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.api.quantity import parse_bytes
from terrace.controller import pods
from terrace.controller.cache import priority_of
from terrace.controller.kinds import (
    STATEFULSET,
    Manifest,
    is_controlled_by,
    is_deleting,
    key_of,
    labels_of,
    uid_of,
)
from terrace.planner.inputs import Usage
from terrace.planner.preemption import Holder, Swap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from terrace.controller.cache import Cache


@dataclass(frozen=True, slots=True)
class Claim:
    """A model waits for devices that others have."""

    claimant: Key
    pool: str
    priority: int
    swap: Swap

    @property
    def victims(self) -> tuple[Key, ...]:
        """The models that are to give their devices up."""
        return tuple(Key(self.claimant.namespace, each.name) for each in self.swap.victims)


class Contest:
    """All claims of one operator; one per claimant."""

    def __init__(self) -> None:
        self._claims: dict[Key, Claim] = {}

    def settle(self, claimant: Key, claim: Claim | None) -> None:
        """Put a claim in the place of the claimant's earlier one; None: it waits no longer."""
        if claim is None:
            self._claims.pop(claimant, None)
        else:
            self._claims[claimant] = claim

    def against(self, victim: Key) -> Claim | None:
        """The most important claim on a model's devices."""
        claims = [claim for claim in self._claims.values() if victim in claim.victims]
        return max(claims, key=lambda each: (each.priority, each.claimant), default=None)

    def reserved(self, used: Usage, model: Key, pool: str, priority: int) -> Usage:
        """``used``, and devices that models at least as important wait for in the same pool."""
        others = [
            claim
            for claim in self._claims.values()
            if claim.claimant != model
            and (claim.claimant.namespace, claim.pool) == (model.namespace, pool)
            and claim.priority >= priority
        ]
        if not others:
            return used
        devices = {resource: Counter(by_place) for resource, by_place in used.devices.items()}
        for claim in others:
            swap = claim.swap
            devices.setdefault(swap.resource, Counter())[swap.flavor.name] += swap.devices
        return Usage(used.memory, devices)


def by_importance(models: Iterable[Manifest]) -> list[Manifest]:
    """The strongest first: after a restart their claims are known before others look for room."""
    return sorted(models, key=lambda each: (-priority_of(each), key_of(each)))


def holders_of(cache: Cache, pool: Key, model: Key) -> list[Holder]:
    """Other models of the pool that have devices by an extended resource."""
    return [
        holder
        for other in cache.models_in_pool(pool)
        if key_of(other) != model
        for holder in _holdings(cache, other)
    ]


def _holdings(cache: Cache, model: Manifest) -> Iterator[Holder]:
    key = key_of(model)
    for kind, child in cache.owned_by(uid_of(model)):
        if kind != STATEFULSET or is_deleting(child):
            continue
        requested = _requested(child)
        if requested is None:
            continue
        resource, count, memory_bytes = requested
        flavor = labels_of(child).get(names.LABEL_FLAVOR, "")
        own = [
            pod
            for pod in cache.pods_of_model(key)
            if is_controlled_by(pod, uid_of(child)) and not pods.is_finished(pod)
        ]
        places = [pod["spec"]["nodeName"] for pod in own if pods.is_bound(pod)]
        unbound = max(0, int(child["spec"].get("replicas", 1)) - len(places))
        where = Counter(places) + Counter({flavor: unbound})
        if not where:
            continue
        yield Holder(
            name=key.name,
            priority=priority_of(model),
            flavor=flavor,
            since=_since(child, own),
            resource=resource,
            devices={place: number * count for place, number in where.items()},
            memory={place: number * memory_bytes for place, number in where.items()},
        )


def _requested(stateful_set: Manifest) -> tuple[str, int, int] | None:
    """Extended resource, its devices and bytes of memory of one replica; None without devices."""
    for container in stateful_set["spec"]["template"]["spec"].get("containers") or ():
        resources = container.get("resources") or {}
        memory = str((resources.get("requests") or {}).get("memory", "0"))
        for name, count in (resources.get("limits") or {}).items():
            if "/" in name:
                return name, int(count), parse_bytes(memory)
    return None


def _since(stateful_set: Manifest, own: list[Manifest]) -> float:
    ready = [moment for pod in own if (moment := pods.ready_since(pod))]
    created = str(stateful_set["metadata"].get("creationTimestamp", ""))
    moment = min(ready, default=created)
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
