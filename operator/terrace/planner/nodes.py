"""Nodes as the planner sees them, and the quantities of Kubernetes.

Owns: NodeFacts, bytes for people. Does not own: which node is good enough
(``placement.py``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from terrace.api.quantity import parse_bytes, parse_millis, parse_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NodeFacts", "Taint", "format_bytes", "node_facts", "parse_bytes", "parse_quantity"]
_STEP = 1024


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What planning needs of one node; ``cpu_millis`` and ``memory_bytes`` are allocatable."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    unschedulable: bool
    ready: bool
    cpu_millis: int
    memory_bytes: int
    resources: Mapping[str, int] = field(default_factory=dict)
    """Allocatable extended resources: names with a slash, whole devices."""
    memo: dict[object, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What was read out of these labels before: the facts never change, and are read a lot."""


def format_bytes(count: int) -> str:
    """``count`` bytes for people: three digits and a binary unit, as ``20.0 MiB``."""
    if abs(count) < _STEP:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= _STEP
        # 1023.96 would print as 1024.0 of the smaller unit.
        if abs(round(value, 1)) < _STEP:
            return f"{value:.1f} {unit}"
    return f"{value / _STEP:.1f} PiB"


def node_facts(node: Mapping[str, Any]) -> NodeFacts:
    """Project a Node object; what is missing or unreadable counts as absent, never raises."""
    metadata = node.get("metadata") or {}
    spec = node.get("spec") or {}
    status = node.get("status") or {}
    allocatable = status.get("allocatable") or status.get("capacity") or {}
    return NodeFacts(
        name=str(metadata.get("name", "")),
        labels=dict(metadata.get("labels") or {}),
        taints=tuple(
            Taint(str(t.get("key", "")), str(t.get("effect", "")), str(t.get("value") or ""))
            for t in spec.get("taints") or ()
        ),
        unschedulable=bool(spec.get("unschedulable", False)),
        ready=any(
            c.get("type") == "Ready" and c.get("status") == "True"
            for c in status.get("conditions") or ()
        ),
        cpu_millis=_or_zero(parse_millis, allocatable.get("cpu")),
        memory_bytes=_or_zero(parse_bytes, allocatable.get("memory")),
        resources={
            str(name): _or_zero(parse_bytes, count)
            for name, count in allocatable.items()
            if "/" in str(name)
        },
    )


def _or_zero(parse: Callable[[str], int], text: object) -> int:
    try:
        return parse(str(text))
    except ValueError:
        return 0
