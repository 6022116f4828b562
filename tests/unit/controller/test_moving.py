"""Replicas that no node takes, and who gives way to whom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from support.controller_objects import offload_plan
from support.planning import GIB, demo_facts, model, node, pool
from terrace.api.conditions import Reason
from terrace.api.names import Key
from terrace.controller.contest import Claim, Contest
from terrace.controller.moving import Eviction, give_way, homeless_left_s, move_on
from terrace.controller.placing import Decision, Running
from terrace.planner.inputs import Cluster, ModelInputs, Usage, unbound
from terrace.planner.preemption import Holder, Swap
from terrace.planner.room import NoPlacement

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPU = "nvidia.com/gpu"
INPUTS = ModelInputs(demo_facts(), model(priority=1))
GPU_FLAVOR = {"name": "gpu", "accelerator": "nvidia"}
BOTH = pool(GPU_FLAVOR, {"name": "cpu"})
CLUSTER = Cluster((node("a", memory_bytes=64 * GIB),))
EVICTION = Eviction("gpu", "strong", 10)


def running() -> Running:
    return Running({"metadata": {"uid": "u", "name": "s"}}, offload_plan(), "")


def pod(*, waits_s: float | None) -> dict[str, Any]:
    since = NOW - timedelta(seconds=waits_s or 0)
    scheduled = {"type": "PodScheduled", "status": "True"}
    if waits_s is not None:
        moment = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        scheduled |= {"status": "False", "reason": "Unschedulable", "lastTransitionTime": moment}
    owner = {"kind": "StatefulSet", "name": "s", "uid": "u", "controller": True}
    return {
        "metadata": {"name": "s-0", "ownerReferences": [owner]},
        "spec": {},
        "status": {"conditions": [scheduled]},
    }


def test_replicas_without_a_node_have_until_the_bound() -> None:
    assert homeless_left_s(running(), [pod(waits_s=100)], NOW, 300) == 200
    assert homeless_left_s(running(), [pod(waits_s=400), pod(waits_s=310)], NOW, 300) == -10


def test_one_replica_with_a_node_is_reason_to_stay() -> None:
    assert homeless_left_s(running(), [pod(waits_s=900), pod(waits_s=None)], NOW, 300) is None
    assert homeless_left_s(running(), [], NOW, 300) is None


def test_they_move_to_a_flavor_that_fits_and_the_set_that_waited_goes() -> None:
    moved = move_on(INPUTS, BOTH, CLUSTER, "gpu", 300)
    assert isinstance(moved, Decision)
    assert (moved.flavor.name, moved.evicted) == ("cpu", "gpu")
    assert "flavor gpu: none of its nodes took a replica for 300 s" in moved.plan.reasons


def test_they_stay_where_no_other_flavor_fits() -> None:
    assert move_on(INPUTS, BOTH, CLUSTER, "cpu", 300) is None
    assert move_on(INPUTS, pool(GPU_FLAVOR), CLUSTER, "gpu", 300) is None


def test_who_gives_way_gets_the_next_flavor_or_hears_who_took_the_devices() -> None:
    other = give_way(INPUTS, BOTH, CLUSTER, EVICTION)
    assert isinstance(other, Decision)
    assert (other.flavor.name, other.evicted) == ("cpu", "gpu")
    nothing = give_way(INPUTS, pool(GPU_FLAVOR), CLUSTER, EVICTION)
    assert isinstance(nothing, NoPlacement)
    assert nothing.reason == Reason.PREEMPTED
    assert nothing.message.startswith("strong (priority 10) took the devices of flavor gpu")
    assert "from this model (priority 1)" in nothing.message


def claim(name: str, priority: int, victim: str = "weak", pool_name: str = "p") -> Claim:
    flavor = BOTH.flavors[0]
    holder = Holder(victim, 0, "gpu", 0, GPU, {"a": 1})
    return Claim(Key("ns", name), pool_name, priority, Swap(flavor, GPU, 2, (holder,), 0))


def test_the_most_important_claim_counts_and_goes_with_its_claimant() -> None:
    contest = Contest()
    for each in (claim("a", 1), claim("b", 5), claim("c", 3)):
        contest.settle(each.claimant, each)
    found = contest.against(Key("ns", "weak"))
    assert found is not None
    assert found.claimant == Key("ns", "b")
    assert contest.against(Key("other", "weak")) is None
    contest.settle(Key("ns", "b"), None)
    found = contest.against(Key("ns", "weak"))
    assert found is not None
    assert found.claimant == Key("ns", "c")


def test_what_is_claimed_is_taken_for_equals_and_weaker_ones_of_the_pool_alone() -> None:
    contest, used = Contest(), Usage({}, {GPU: {"a": 1}})
    contest.settle(Key("ns", "strong"), claim("strong", 5))
    reserved = contest.reserved(used, Key("ns", "weak"), "p", 5)
    assert reserved.devices[GPU] == {"a": 1, unbound("gpu"): 2}
    for key, pool_name, priority in (
        (Key("ns", "stronger"), "p", 6),
        (Key("ns", "strong"), "p", 5),
        (Key("ns", "weak"), "q", 0),
        (Key("other", "weak"), "p", 0),
    ):
        assert contest.reserved(used, key, pool_name, priority) is used
