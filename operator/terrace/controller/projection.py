"""Which parts of an object the cache keeps.

Owns: the projection per kind; a heartbeat of a node or a pod's unread field is no change.
Does not own: the cache. Pure. Next: ``cache.py`` stores the result.
"""

from __future__ import annotations

from typing import Any

from terrace.controller.kinds import NODE, POD, Kind, Manifest

_POD_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
)
_POD_STATUS = (
    "phase",
    "podIP",
    "reason",
    "message",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
)


def project(kind: Kind, manifest: Manifest) -> Manifest:
    """A copy with what we read; nested values may be shared with ``manifest``."""
    if kind == NODE:
        return _node(manifest)
    if kind == POD:
        return _pod(manifest)
    metadata = {k: v for k, v in manifest["metadata"].items() if k != "managedFields"}
    # Objects out of a list do not name their kind.
    named = {"apiVersion": kind.api_version, "kind": kind.kind}
    return {**manifest, **named, "metadata": metadata}


def _node(node: Manifest) -> Manifest:
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    conditions = [
        {"type": condition.get("type"), "status": condition.get("status")}
        for condition in status.get("conditions") or ()
        if condition.get("type") == "Ready"
    ]
    return {
        "metadata": _pick(metadata, ("name", "uid", "resourceVersion", "labels")),
        "spec": _pick(spec, ("taints", "unschedulable")),
        "status": {"allocatable": status.get("allocatable") or {}, "conditions": conditions},
    }


def _pod(pod: Manifest) -> Manifest:
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    containers = [
        _pick(container, ("name", "resources")) for container in spec.get("containers") or ()
    ]
    configs = [volume for volume in spec.get("volumes") or () if "configMap" in volume]
    return {
        "metadata": _pick(pod["metadata"], _POD_METADATA),
        "spec": {**_pick(spec, ("nodeName",)), "containers": containers, "volumes": configs},
        "status": _pick(status, _POD_STATUS),
    }


def _pick(source: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: source[field] for field in fields if field in source}
