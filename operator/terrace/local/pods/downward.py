"""The downward API: what a container may ask about its own pod. Pure.

Owns: fieldRef and resourceFieldRef, for environment and volumes alike. Next: ``environment.py``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.local.pods.spec import Container, InvalidPodError, Json, Pod
from terrace.planner.nodes import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True)
class Facts:
    """What the runner knows of the pod beyond its manifest."""

    pod: Pod
    pod_ip: str
    host_ip: str
    node_name: str
    allocatable: Mapping[str, str]
    """The node's ``cpu`` and ``memory``: what a container without a limit may use."""


def field_value(path: str, facts: Facts) -> str:
    """The text of ``fieldRef.fieldPath``; an absent label or annotation is empty.

    Raises:
        InvalidPodError: the API knows no such field.
    """
    meta, spec = facts.pod.manifest["metadata"], facts.pod.manifest["spec"]
    keyed = _KEYED.fullmatch(path)
    if keyed:
        return str((meta.get(keyed[1]) or {}).get(keyed[2], ""))
    known: Mapping[str, str] = {
        "metadata.name": facts.pod.name,
        "metadata.namespace": facts.pod.namespace,
        "metadata.uid": facts.pod.uid,
        "spec.nodeName": spec.get("nodeName") or facts.node_name,
        "spec.serviceAccountName": facts.pod.service_account,
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path in known:
        return known[path]
    if path in {"metadata.labels", "metadata.annotations"}:
        return _lines(meta.get(path.partition(".")[2]) or {})
    raise InvalidPodError(f"fieldRef.fieldPath: {path!r} is not a field of the downward API")


def resource_value(reference: Json, container: Container, facts: Facts) -> str:
    """The number ``resourceFieldRef`` asks for, in units of its divisor, rounded up."""
    kind, _, name = str(reference.get("resource", "")).partition(".")
    if kind not in {"limits", "requests"} or not name:
        raise InvalidPodError(f"resourceFieldRef.resource: {kind}.{name} is not a resource")
    declared = container.limits if kind == "limits" else container.requests
    amount = declared.get(name)
    if amount is None:
        amount = facts.allocatable.get(name, "0") if kind == "limits" else "0"
    divisor = parse_quantity(str(reference.get("divisor") or "1")) or parse_quantity("1")
    return str(math.ceil(parse_quantity(amount) / divisor))


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(values.items()))
