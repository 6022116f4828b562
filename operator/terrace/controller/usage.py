"""Memory that placements decided so far take: by node where bound, by flavor where not yet.

Owns: the sum over other models' replicas. Does not own: what is free (``planner``). No I/O.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.api.quantity import parse_bytes
from terrace.controller import pods
from terrace.controller.kinds import POD, STATEFULSET, Manifest, controller_of, key_of, labels_of
from terrace.planner.inputs import Usage

if TYPE_CHECKING:
    from terrace.controller.cache import Cache


def used_by_others(cache: Cache, model: Key) -> Usage:
    """What all replicas but the model's own have requested."""
    used: Counter[str] = Counter()
    bound: Counter[str] = Counter()
    for pod in cache.of_kind(POD):
        if not pods.is_bound(pod) or pods.is_finished(pod):
            continue
        owner = controller_of(pod)
        if owner is not None:
            bound[str(owner.get("uid"))] += 1
        if _model_of(pod) != model:
            used[pod["spec"]["nodeName"]] += _memory(pod["spec"])
    for stateful_set in cache.of_kind(STATEFULSET):
        if _model_of(stateful_set) == model:
            continue
        spec = stateful_set["spec"]
        unbound = int(spec.get("replicas", 1)) - bound[stateful_set["metadata"].get("uid", "")]
        if unbound > 0:
            flavor = labels_of(stateful_set).get(names.LABEL_FLAVOR, "")
            used[flavor] += unbound * _memory(spec["template"]["spec"])
    return Usage(used)


def _model_of(manifest: Manifest) -> Key:
    return Key(key_of(manifest).namespace, labels_of(manifest).get(names.LABEL_MODEL, ""))


def _memory(pod_spec: Manifest) -> int:
    total = 0
    for container in pod_spec.get("containers") or ():
        requests = (container.get("resources") or {}).get("requests") or {}
        try:
            total += parse_bytes(str(requests.get("memory", "0")))
        except ValueError:
            continue  # Not ours to judge: the API server has accepted it.
    return total
