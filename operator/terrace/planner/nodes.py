"""Nodes as the planner sees them, and the quantities of Kubernetes.

Owns: NodeFacts, parsing of quantities, bytes for people. Does not own: which node is good enough
(``placement.py``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from re import ASCII, compile as compile_pattern
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_QUANTITY = compile_pattern(
    r"\+?(?P<number>[0-9]{1,18}(\.[0-9]{0,18})?)"
    r"((?P<suffix>n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE](?P<exponent>[+-]?[0-9]{1,2}))?",
    ASCII,
)
_FACTORS = {
    "": Decimal(1),
    **{unit: Decimal(10) ** power for unit, power in zip("num", (-9, -6, -3), strict=True)},
    **{unit: Decimal(1000) ** (power + 1) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (power + 1) for power, unit in enumerate("KMGTPE")},
}
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


def parse_quantity(text: str) -> Decimal:
    """Value of a Kubernetes quantity such as ``500m``, ``1.5Gi`` or ``1e3``.

    Raises ValueError where it is none; negative ones are none for our purposes.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 1.5Gi")
    number = Decimal(match["number"])
    if match["exponent"]:
        return number * Decimal(10) ** int(match["exponent"])
    return number * _FACTORS[match["suffix"] or ""]


def parse_bytes(text: str) -> int:
    """Bytes of a quantity, rounded up as Kubernetes does."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def parse_millis(text: str) -> int:
    """Thousandths of a quantity, rounded up: CPU."""
    return int((parse_quantity(text) * 1000).to_integral_value(ROUND_CEILING))


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
    )


def _or_zero(parse: Callable[[str], int], text: object) -> int:
    try:
        return parse(str(text))
    except ValueError:
        return 0
