"""The controller against a cluster that fails: it always ends with the same objects."""

from __future__ import annotations

import pytest

from simulation.controller.scenarios import (
    DEMO,
    SCENARIOS,
    changed,
    created,
    quiet_writes,
    replicas,
    status,
)
from simulation.controller.simulation import Simulation
from support.controller_objects import condition, model, node, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import (
    CHILD_KINDS,
    CLAIM,
    MODEL,
    NODE,
    POOL,
    SECRET,
    SERVICE,
    STATEFULSET,
    key_of,
    uid_of,
)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_kill_at_any_await_changes_nothing_in_the_end(name: str) -> None:
    calm = Simulation()
    await SCENARIOS[name](calm)
    assert condition(status(calm), "Ready")["status"] == "True"
    wanted = calm.children()
    assert calm.num_checkpoints > 30
    for kill_at in range(calm.num_checkpoints):
        sim = Simulation()
        sim.kill_at = kill_at
        await SCENARIOS[name](sim)
        assert sim.num_kills == 1, kill_at
        assert sim.children() == wanted, kill_at
        assert condition(status(sim), "Ready")["status"] == "True", kill_at
    assert await quiet_writes(sim) == []


@pytest.mark.parametrize("seed", range(12))
async def test_lost_requests_lost_answers_and_watch_gaps_are_survived(seed: int) -> None:
    calm = Simulation()
    await changed(calm)
    sim = Simulation(seed)
    sim.fault_rate, sim.gap_rate = 0.15, 0.1
    await created(sim)
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"length": 512}, replicas=3))
    await sim.settle()
    sim.cluster.vanish(SERVICE, DEMO)
    sim.calm()
    await sim.settle()
    assert sim.children() == calm.children()
    assert await quiet_writes(sim) == []


async def test_a_deletion_that_no_watch_tells_is_found_by_the_full_list() -> None:
    sim = Simulation()
    await created(sim)
    sim.cluster.vanish(SERVICE, DEMO)
    sim.cluster.events.clear()  # What a 410 after an outage does to kopf's watch.
    await sim.settle()
    assert (SERVICE, DEMO) not in sim.cluster.objects
    await sim.controller.resync()
    await sim.settle()
    assert (SERVICE, DEMO) in sim.cluster.objects
    missed = sim.controller.metrics.missed_deletions.labels("services")._value.get()
    assert missed == 1


@pytest.mark.parametrize("kind", CHILD_KINDS, ids=str)
async def test_a_deleted_child_comes_back(kind: object) -> None:
    sim = Simulation()
    await created(sim)
    wanted = sim.children()
    for child_kind, key in list(sim.cluster.objects):
        if child_kind == kind:
            sim.cluster.vanish(child_kind, key)
    assert sim.children() != wanted
    await sim.settle()
    assert sim.children() == wanted


@pytest.mark.parametrize("kind", CHILD_KINDS, ids=str)
async def test_an_edited_child_is_mended(kind: object) -> None:
    sim = Simulation()
    await created(sim)
    wanted = sim.children()
    for child_kind, key in list(sim.cluster.objects):
        if child_kind == kind:
            sim.cluster.edit(
                child_kind, key, lambda child: child["metadata"]["labels"].pop(names.PART_OF)
            )
    assert sim.children() != wanted
    await sim.settle()
    assert sim.children() == wanted


async def test_a_rollout_takes_one_ready_replica_at_a_time() -> None:
    sim = Simulation()
    await created(sim)
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(replicas=3))
    await sim.settle()
    lowest = 3
    step = sim.workloads.step

    def watched() -> bool:
        nonlocal lowest
        lowest = min(lowest, sim.workloads.ready_replicas(DEMO))
        return step()

    sim.workloads.step = watched  # type: ignore[method-assign] # looks on
    before = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"parallel": 2}))
    await sim.settle()
    assert lowest == 2
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in replicas(sim))


async def test_a_set_made_anew_keeps_its_replicas_and_the_model_available() -> None:
    sim = Simulation()
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=3, offload={"maxDisk": "1Gi"}))
    await sim.settle()
    before = sim.cluster.objects[STATEFULSET, Key("default", "demo-cpu")]["metadata"]["uid"]
    claims = {key_of(c): uid_of(c) for c in sim.cluster.of_kind(CLAIM)}
    lowest, availability, step = 3, set(), sim.workloads.step

    def watched() -> bool:
        nonlocal lowest
        lowest = min(lowest, sim.workloads.ready_replicas(DEMO))
        availability.add(condition(status(sim), "Available")["status"])
        return step()

    sim.workloads.step = watched  # type: ignore[method-assign] # looks on
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(offload={"maxDisk": "4Gi"}))
    await sim.settle()
    assert lowest == 2  # The rollout's own step.
    assert availability == {"True"}
    after = sim.cluster.objects[STATEFULSET, Key("default", "demo-cpu")]["metadata"]["uid"]
    assert after != before
    assert {key_of(c): uid_of(c) for c in sim.cluster.of_kind(CLAIM)} == claims
    grown = {c["spec"]["resources"]["requests"]["storage"] for c in sim.cluster.of_kind(CLAIM)}
    assert grown == {"1Gi", "4608Mi"}  # The pool's own, and those of the replicas.


async def test_pods_without_a_set_keep_their_plan_whatever_the_planner_would_choose_now() -> None:
    sim = Simulation()
    await created(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    digest = status(sim)["status"]["plan"]["digest"]
    live = sim.cluster.objects[STATEFULSET, Key("default", "demo-cpu")]
    await sim.cluster.delete(STATEFULSET, key_of(live), uid_of(live), orphan=True)
    # Now the planner would choose other threads.
    sim.cluster.edit(NODE, Key("", "node-a"), lambda n: n["status"]["allocatable"].update(cpu="3"))
    sim.controller = sim._new_controller()
    await sim.settle()
    assert {pod["metadata"]["uid"] for pod in replicas(sim)} == pods
    shown = status(sim)["status"]["plan"]
    assert shown["digest"] == digest
    assert "threads" in shown["pending"]["reason"]


async def test_a_plan_that_does_not_start_stops_the_rollout_at_one_replica() -> None:
    sim = Simulation()
    await created(sim)
    old = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.workloads.is_serving = lambda _pod: False
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"parallel": 2}))
    await sim.settle()
    assert len(old & {pod["metadata"]["uid"] for pod in replicas(sim)}) == 1
    assert condition(status(sim), "Available")["status"] == "True"
    assert condition(status(sim), "Ready")["reason"] == "RollingOut"


async def test_nodes_and_another_image_restart_nothing() -> None:
    sim = Simulation()
    await created(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.put_new(NODE, node("node-b", cpu="64", memory="512Gi"))
    await sim.settle()
    sim.config = sim.config.model_copy(update={"runtime_image": "terrace/runtime:2"})
    sim.controller = sim._new_controller()
    await sim.settle()
    assert {pod["metadata"]["uid"] for pod in replicas(sim)} == pods
    stateful_set = sim.cluster.objects[STATEFULSET, Key("default", "demo-cpu")]
    images = [c["image"] for c in stateful_set["spec"]["template"]["spec"]["containers"]]
    assert images == ["terrace/runtime:2"]
    assert await quiet_writes(sim) == []


async def test_a_new_trust_key_is_rolled_out() -> None:
    sim = Simulation()
    await created(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.vanish(SECRET, Key("system", "terrace-trust"))
    await sim.controller.resync()
    await sim.settle()
    assert (SECRET, Key("system", "terrace-trust")) in sim.cluster.objects
    assert pods.isdisjoint(pod["metadata"]["uid"] for pod in replicas(sim))
