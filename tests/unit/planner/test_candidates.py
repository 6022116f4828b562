from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.planning import GIB, node, pool, taint
from terrace.planner.candidates import candidates, largest_free
from terrace.planner.inputs import unbound

if TYPE_CHECKING:
    from terrace.api.pool import Flavor


def flavor(**settings: Any) -> Flavor:
    return pool({"name": "cpu", **settings}).flavors[0]


def names(wanted: Flavor, *nodes: Any) -> list[str]:
    return [each.name for each in candidates(wanted, nodes).nodes]


def test_any_ready_node_is_of_a_flavor_that_asks_for_nothing() -> None:
    assert names(flavor(), node("a"), node("b", labels={"x": "y"})) == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ready": False}, "1 not ready"),
        ({"unschedulable": True}, "1 cordoned"),
        ({"memory_bytes": 0}, "1 without allocatable CPU and memory"),
        (
            {"taints": (taint("gpu", value="yes"),)},
            "1 with taint gpu=yes:NoSchedule that is not tolerated",
        ),
        (
            {"taints": (taint("gone", "NoExecute"),)},
            "1 with taint gone:NoExecute that is not tolerated",
        ),
    ],
)
def test_a_node_that_cannot_take_pods_is_refused_with_the_reason(
    changes: dict[str, Any], why: str
) -> None:
    assert candidates(flavor(), [node(**changes)]).refused == why


def test_a_soft_taint_refuses_nobody() -> None:
    assert names(flavor(), node("a", taints=(taint("old", "PreferNoSchedule"),))) == ["a"]


def test_all_labels_of_the_selector_must_match() -> None:
    wanted = flavor(nodeSelector={"disk": "ssd", "zone": "a"})
    assert names(
        wanted,
        node("both", labels={"disk": "ssd", "zone": "a", "more": ""}),
        node("one", labels={"disk": "ssd", "zone": "b"}),
        node("none"),
    ) == ["both"]
    assert candidates(wanted, [node(labels={"disk": "ssd"})]).refused == "1 without label zone=a"


@pytest.mark.parametrize(
    ("toleration", "is_tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "value": "no"}, False),
        ({"key": "gpu"}, False),
        ({"key": "tpu", "operator": "Exists"}, False),
    ],
)
def test_tolerations_mean_what_they_mean_in_a_pod(
    toleration: dict[str, Any],
    is_tolerated: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    tainted = node("a", taints=(taint("gpu", value="yes"),))
    assert names(flavor(tolerations=[toleration]), tainted) == (["a"] if is_tolerated else [])


def test_what_is_used_on_a_node_is_not_free() -> None:
    nodes = [node("a", memory_bytes=8 * GIB), node("b", memory_bytes=6 * GIB)]
    free = largest_free(nodes, "cpu", {"a": 5 * GIB})
    assert (free.node, free.bytes) == ("b", 6 * GIB)


def test_pods_without_a_node_count_against_all_nodes_together() -> None:
    nodes = [node("a", memory_bytes=8 * GIB), node("b", memory_bytes=8 * GIB)]
    assert largest_free(nodes, "cpu", {unbound("cpu"): 4 * GIB}).bytes == 8 * GIB
    assert largest_free(nodes, "cpu", {unbound("cpu"): 10 * GIB}).bytes == 6 * GIB
    assert largest_free(nodes, "cpu", {unbound("cpu"): 20 * GIB}).bytes == 0
