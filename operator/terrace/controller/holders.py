"""Which models of a pool have devices, and since when, out of the cache.

Owns: reading sets and pods as holders. Does not own: who has to go (``planner/preemption.py``). No
I/O. Next: ``contending.py``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.quantity import parse_bytes
from terrace.controller import pods
from terrace.controller.cache import priority_of
from terrace.controller.kinds import (
    STATEFULSET,
    Manifest,
    controller_of,
    is_deleting,
    key_of,
    labels_of,
    uid_of,
)
from terrace.planner.inputs import unbound
from terrace.planner.preemption import Holder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.names import Key
    from terrace.controller.cache import Cache


def holders_of(cache: Cache, pool: Key, model: Key) -> list[Holder]:
    """Other models of the pool that have devices by an extended resource."""
    return [
        holder
        for other in cache.models_in_pool(pool)
        if key_of(other) != model
        for holder in _holdings(cache, other)
    ]


def _holdings(cache: Cache, model: Manifest) -> Iterator[Holder]:
    replicas: dict[str, list[Manifest]] = defaultdict(list)
    for pod in cache.pods_of_model(key_of(model)):
        if not pods.is_finished(pod):
            replicas[str((controller_of(pod) or {}).get("uid", ""))].append(pod)
    for kind, child in cache.owned_by(uid_of(model)):
        if kind == STATEFULSET and not is_deleting(child):
            own = replicas.pop(uid_of(child), [])
            count = int(child["spec"].get("replicas", 1))
            spec = child["spec"]["template"]["spec"]
            yield from _holder(model, child, spec, own, count, _since(child, own))
    # Their set is gone: they drain.
    for leaving in replicas.values():
        bound = [pod for pod in leaving if pods.is_bound(pod)]
        if bound:
            yield from _holder(model, bound[0], bound[0]["spec"], bound, len(bound), None)


def _holder(
    model: Manifest,
    labelled: Manifest,
    pod_spec: Manifest,
    own: list[Manifest],
    count: int,
    since: float | None,
) -> Iterator[Holder]:
    requested = _requested(pod_spec)
    places = [pod["spec"]["nodeName"] for pod in own if pods.is_bound(pod)]
    flavor = labels_of(labelled).get(names.LABEL_FLAVOR, "")
    where = Counter(places) + Counter({unbound(flavor): max(0, count - len(places))})
    if requested is None or not where:
        return
    resource, devices, memory_bytes = requested
    yield Holder(
        name=key_of(model).name,
        priority=priority_of(model),
        flavor=flavor,
        since=since or 0.0,
        resource=resource,
        devices={place: number * devices for place, number in where.items()},
        memory={place: number * memory_bytes for place, number in where.items()},
        is_leaving=since is None,
    )


def _requested(pod_spec: Manifest) -> tuple[str, int, int] | None:
    """Extended resource, its devices and bytes of memory of one replica; None without devices."""
    for container in pod_spec.get("containers") or ():
        resources = container.get("resources") or {}
        memory = str((resources.get("requests") or {}).get("memory", "0"))
        for name, count in (resources.get("limits") or {}).items():
            if "/" in name:
                return name, int(count), parse_bytes(memory)
    return None


def _since(stateful_set: Manifest, own: list[Manifest]) -> float:
    """When the first of its replicas began to answer or, while none does, it was made."""
    ready = [moment for pod in own if (moment := pods.ready_since(pod))]
    created = str(stateful_set["metadata"].get("creationTimestamp", ""))
    moment = min(ready, default=created)
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
