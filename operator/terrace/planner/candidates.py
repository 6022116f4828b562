"""The nodes of a flavor: which ones may take its replicas, and how much is free.

Owns: kube-scheduler's rules as far as a flavor can break them: readiness, labels, taints, CPU.
Does not own: binding (kube-scheduler), memory (``placement.py``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.planner.inputs import unbound
from terrace.planner.memo import NodesMemo

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from terrace.api.pool import Flavor, Toleration
    from terrace.planner.nodes import NodeFacts, Taint

_MEMO: NodesMemo[Candidates] = NodesMemo()
_HARD_EFFECTS = frozenset({"NoSchedule", "NoExecute"})


@dataclass(frozen=True, slots=True)
class Candidates:
    """Nodes that may take a replica of one flavor."""

    nodes: tuple[NodeFacts, ...]
    refused: str
    """Why the other nodes may not, with counts: ``1 not ready, 2 without label zone=a``."""


@dataclass(frozen=True, slots=True)
class Free:
    """The most memory that one node of a flavor has left."""

    bytes: int
    node: str


def lane_of(flavor: Flavor) -> Hashable:
    """All of ``flavor`` that decides which nodes are its own."""
    return (
        tuple(sorted(flavor.node_selector.items())),
        tuple((each.key, each.operator, each.value, each.effect) for each in flavor.tolerations),
    )


def candidates(flavor: Flavor, nodes: Sequence[NodeFacts]) -> Candidates:
    """Sort ``nodes``, which never change, into those of ``flavor`` and why the rest is not."""
    return _MEMO.get(nodes, lane_of(flavor), lambda: _sorted_out(flavor, nodes))


def _sorted_out(flavor: Flavor, nodes: Iterable[NodeFacts]) -> Candidates:
    good: list[NodeFacts] = []
    refused = Counter[str]()
    selector = sorted(flavor.node_selector.items())
    for node in nodes:
        why = _refusal(flavor, selector, node)
        if why:
            refused[why] += 1
        else:
            good.append(node)
    words = ", ".join(f"{count} {why}" for why, count in sorted(refused.items()))
    return Candidates(tuple(good), words)


def largest_free(nodes: Sequence[NodeFacts], flavor: str, used: Mapping[str, int]) -> Free:
    """The node with most memory left; ``nodes`` is not empty.

    Bytes in ``used`` under the ``unbound`` flavor belong to pods that no node has yet. They may go
    to any of the nodes, so they count against all of them together.
    """
    best, most, together = nodes[0].name, -1, -used.get(unbound(flavor), 0)
    for node in nodes:
        free = max(0, node.memory_bytes - used.get(node.name, 0))
        together += free
        # By name where equal, so that a plan does not depend on the order of nodes.
        if free > most or (free == most and node.name < best):
            best, most = node.name, free
    return Free(min(most, max(0, together)), best)


def _refusal(flavor: Flavor, selector: Sequence[tuple[str, str]], node: NodeFacts) -> str:
    """Why ``node`` is not of ``flavor``; empty when it is."""
    for key, value in selector:
        if node.labels.get(key) != value:
            return f"without label {key}={value}"
    if not node.ready:
        return "not ready"
    if node.unschedulable:
        return "cordoned"
    if node.memory_bytes <= 0 or node.cpu_millis <= 0:
        return "without allocatable CPU and memory"
    for taint in node.taints:
        if taint.effect in _HARD_EFFECTS and not _tolerated(taint, flavor.tolerations):
            value = f"={taint.value}" if taint.value else ""
            return f"with taint {taint.key}{value}:{taint.effect} that is not tolerated"
    return ""


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    return any(
        (not each.effect or each.effect == taint.effect)
        and (not each.key or each.key == taint.key)
        and (each.operator == "Exists" or (bool(each.key) and (each.value or "") == taint.value))
        for each in tolerations
    )
