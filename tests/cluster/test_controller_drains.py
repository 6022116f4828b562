"""What may leave a node that is drained: evictions, asked of the real API server."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cluster.controller_api import Manifest, eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_kubelet import running
from terrace.api import names
from terrace.controller.kinds import BUDGET

if TYPE_CHECKING:
    from cluster.controller_operator import Operator
    from cluster.controller_world import World

GOES = 201


def evict(world: World, pod: Manifest) -> int:
    """The answer's status; ``kubectl drain`` tries again and again where a budget forbids it."""
    status, said = world.api.evict(world.namespace, pod["metadata"]["name"])
    assert status == GOES or "would violate the pod's disruption budget" in said, said
    return status


def budget(world: World, name: str) -> Manifest:
    """As it is once the cluster has counted the replicas."""

    def counted() -> Manifest | None:
        found = world.api.get(BUDGET, world.namespace, name)
        return found if found and (found.get("status") or {}).get("expectedPods") else None

    found: Manifest = eventually(counted, f"the budget {name} is counted")
    return found


def unready(pod: Manifest) -> Manifest:
    return running(pod, ready=False)


def is_replaced(world: World, before: set[str]) -> bool:
    return bool(world.uids()) and before.isdisjoint(world.uids())


def test_a_lone_replica_that_is_not_ready_leaves_a_drained_node(
    world: World, operator: Operator
) -> None:
    world.kubelet.serve = unready
    world.add_pool()
    world.add_model()
    # One that has not started may always go.
    eventually(
        lambda: any(each["status"]["phase"] == "Running" for each in world.pods()), "it runs"
    )
    (pod,), before = world.pods(), world.uids()
    assert world.api.items(BUDGET, world.namespace) == []
    # What it would be with a budget of one: the drain waits for a replica that never gets ready.
    selector = {"matchLabels": names.selector_labels("demo")}
    metadata = {"name": "by-hand", "namespace": world.namespace}
    spec = {"maxUnavailable": 1, "selector": selector}
    world.api.create(
        BUDGET, {"apiVersion": "policy/v1", "kind": str(BUDGET), "metadata": metadata, "spec": spec}
    )
    assert budget(world, "by-hand")["status"]["disruptionsAllowed"] == 0
    assert evict(world, pod) != GOES
    world.api.delete(BUDGET, world.namespace, "by-hand")
    assert evict(world, pod) == GOES
    eventually(partial(is_replaced, world, before), "another replica in its place")


def test_of_two_replicas_one_at_a_time_leaves_a_drained_node(
    world: World, operator: Operator
) -> None:
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    eventually(
        lambda: budget(world, "demo")["status"]["disruptionsAllowed"] == 1, "one replica may go"
    )
    (first, second), before = world.pods(), world.uids()
    # The first one's successor does not get ready.
    world.kubelet.serve = lambda pod: running(pod, ready=pod["metadata"]["uid"] in before)
    assert evict(world, first) == GOES
    assert evict(world, second) != GOES
    assert second["metadata"]["uid"] in world.uids()


def test_replicas_that_are_not_ready_leave_a_drained_node(world: World, operator: Operator) -> None:
    world.kubelet.serve = unready
    world.add_pool()
    world.add_model(replicas=2)
    eventually(
        lambda: [each["status"]["phase"] for each in world.pods()] == ["Running"] * 2, "both run"
    )
    assert budget(world, "demo")["status"]["disruptionsAllowed"] == 0
    assert [evict(world, each) for each in world.pods()] == [GOES, GOES]


def test_a_budget_comes_and_goes_with_the_second_replica(world: World, operator: Operator) -> None:
    world.add_pool()
    world.add_model()
    world.wait_ready()
    for replicas, num in ((2, 1), (1, 0)):
        world.patch(replicas=replicas)
        eventually(partial(has_budgets, world, num), f"{num} budgets for {replicas} replicas")


def has_budgets(world: World, num: int) -> bool:
    return len(world.api.items(BUDGET, world.namespace)) == num
