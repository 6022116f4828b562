"""Everything one reconcile looks at, taken from the cache at one instant.

Owns: collecting. Does not own: judging. No I/O: the cache may be a little behind the cluster, and
every decision is safe on such a view. Next: ``reconcile.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.controller.cache import Cache, claimed_names
from terrace.controller.claims import Claims, settle_claims
from terrace.controller.kinds import (
    JOB,
    MODEL,
    POOL,
    STATEFULSET,
    Manifest,
    controller_of,
    is_deleting,
    key_of,
    labels_of,
    uid_of,
)
from terrace.controller.model_volumes import cache_claim, claim_of

if TYPE_CHECKING:
    from terrace.controller.diff import Children
    from terrace.controller.inventory import Inventory
    from terrace.planner.inputs import Usage
    from terrace.planner.nodes import NodeFacts


@dataclass(frozen=True, slots=True)
class Observed:
    """One model and what surrounds it."""

    model: Manifest
    pool: Manifest | None
    children: Children
    """Objects that this model controls."""
    pods: list[Manifest]
    replica_claims: list[Manifest]
    """Claims that its replicas have for themselves: of disk tiers, and of model files."""
    inventory: Inventory
    claims: Claims

    @property
    def nodes(self) -> tuple[NodeFacts, ...]:
        """All nodes."""
        return self.inventory.nodes

    @property
    def used(self) -> Usage:
        """What other models' replicas take, and what waits for nodes of the pool's flavors."""
        flavors = ((self.pool or {}).get("spec") or {}).get("flavors") or ()
        selectors = {str(f.get("name")): f.get("nodeSelector") or {} for f in flavors}
        return self.inventory.used_by_others(key_of(self.model), selectors)

    @property
    def replicas(self) -> list[Manifest]:
        """Pods of the model's sets, or of one that is being made anew.

        A label alone makes no replica; a pod that the model's set will adopt is one.
        """
        sets = {uid_of(stateful_set) for stateful_set in self.sets}
        orphans = {pod["metadata"]["name"] for pod in self.orphans}
        return [
            pod
            for pod in self.pods
            if (controller_of(pod) or {}).get("uid") in sets or pod["metadata"]["name"] in orphans
        ]

    @property
    def orphans(self) -> list[Manifest]:
        """Replicas without an owner, by the labels and names that their set adopts by."""
        model = self.model["metadata"]["name"]
        wanted = names.selector_labels(model).items()
        return [
            pod
            for pod in self.pods
            if controller_of(pod) is None
            and not is_deleting(pod)
            and wanted <= labels_of(pod).items()
            and _is_pod_of(pod, model)
        ]

    @property
    def sets(self) -> list[Manifest]:
        """The model's StatefulSets, one per flavor it ran or runs on."""
        return [child for (kind, _), child in self.children.items() if kind == STATEFULSET]

    @property
    def live_sets(self) -> list[Manifest]:
        """Those of them that are not on their way out."""
        return [child for child in self.sets if not is_deleting(child)]

    @property
    def jobs(self) -> dict[str, Manifest]:
        """Fetch Jobs by name."""
        return {name: child for (kind, name), child in self.children.items() if kind == JOB}


def claim_for(seen: Observed, uri: str) -> str:
    """The claim that a file of the model is to lie on; empty while its pool is not there."""
    return claim_of(uri) or (cache_claim(seen.pool) if seen.pool else "")


def observe(cache: Cache, key: Key) -> Observed | None:
    """The view of one model; None when it does not exist."""
    model = cache.get(MODEL, key)
    if model is None:
        return None
    wanted = claimed_names(model)
    return Observed(
        model=model,
        pool=cache.get(POOL, Key(key.namespace, pool_name(model))),
        children={
            (kind, child["metadata"]["name"]): child
            for kind, child in cache.owned_by(uid_of(model))
        },
        pods=cache.pods_of_model(key),
        replica_claims=cache.claims_of_model(key),
        inventory=cache.inventory,
        claims=settle_claims(model, wanted, {name: cache.models_named(name) for name in wanted}),
    )


def nodes_of(cache: Cache) -> tuple[NodeFacts, ...]:
    """All nodes as the planner sees them."""
    return cache.inventory.nodes


def pool_name(model: Manifest) -> str:
    """The pool a stored model refers to, read without trusting that it parses."""
    reference = (model.get("spec") or {}).get("poolRef")
    return str(reference.get("name", "")) if isinstance(reference, dict) else ""


def source_uri(model: Manifest) -> str:
    """Where a stored model's file comes from, read without trusting that it parses."""
    source = (model.get("spec") or {}).get("source")
    return str(source.get("uri", "")) if isinstance(source, dict) else ""


def _is_pod_of(pod: Manifest, model: str) -> bool:
    set_name, _, ordinal = str(pod["metadata"]["name"]).rpartition("-")
    flavor = labels_of(pod).get(names.LABEL_FLAVOR, "")
    return set_name == names.statefulset_name(model, flavor) and ordinal.isdigit()
