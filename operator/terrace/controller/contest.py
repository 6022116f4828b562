"""Who waits for whose devices: claims of models of higher priority on those that run.

Owns: claims, which live in memory and are made anew by the claimant's next reconcile after a
restart. Does not own: who has what (``holders.py``), choosing (``planner/preemption.py``), removing
replicas (``reconcile.py``). No I/O. Next: ``contending.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api.names import Key
from terrace.planner.inputs import Usage, unbound

if TYPE_CHECKING:
    from terrace.planner.preemption import Swap


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
            devices.setdefault(swap.resource, Counter())[unbound(swap.flavor.name)] += swap.devices
        return Usage(used.memory, devices)
