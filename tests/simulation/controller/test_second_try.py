"""A plan that is too small is made anew once, then given up; nothing loops, whatever is killed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulation.controller.scenarios import DEMO, POOL_KEY, quiet_writes, replicas, status
from simulation.controller.simulation import Simulation
from support.controller_objects import condition, model, node, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.api.quantity import parse_bytes
from terrace.controller.kinds import MODEL, NODE, POD, POOL, STATEFULSET, Manifest, key_of
from terrace.planner.correction import LEAST_GUESS_BYTES
from terrace_runtime.contract import EXIT_DEVICE_MEMORY, EXIT_HOST_MEMORY

MIB = 1 << 20
SET = Key("default", "demo-cpu")


def limit_of(pod: Manifest) -> int:
    (container,) = pod["spec"]["containers"]
    return parse_bytes(container["resources"]["limits"]["memory"])


def always(_pod: Manifest) -> str:
    return "OOMKilled"


async def first_limit() -> int:
    """What the planner gives the demo model by itself."""
    sim = Simulation()
    await begun(sim)
    return limit_of(replicas(sim)[0])


async def begun(sim: Simulation, num_replicas: int = 2) -> None:
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=num_replicas))
    await sim.settle()


def stateful_set(sim: Simulation) -> Manifest:
    return sim.cluster.objects[STATEFULSET, SET]


def plan_of(sim: Simulation) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        stateful_set(sim)["metadata"]["annotations"][names.ANNOTATION_PLAN]
    )
    return found


async def test_a_plan_that_was_too_small_is_made_anew_with_more() -> None:
    limit = await first_limit()
    sim = Simulation()
    sim.workloads.shortage = lambda pod: "OOMKilled" if limit_of(pod) <= limit else ""
    await begun(sim)
    assert {limit_of(pod) - limit for pod in replicas(sim)} == {LEAST_GUESS_BYTES}
    assert plan_of(sim)["attempt"] == 1
    assert condition(status(sim), "Ready")["status"] == "True"
    assert "pending" not in status(sim)["status"]["plan"]
    assert sim.workloads.num_killed == 2  # Each replica once.
    assert await quiet_writes(sim) == []


async def test_a_kill_that_was_over_before_anybody_looked_counts_as_well() -> None:
    sim = Simulation()
    await begun(sim)
    before = limit_of(replicas(sim)[0])

    def was_killed(pod: Manifest) -> None:
        ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": sim.now().isoformat()}
        pod["status"]["containerStatuses"][0]["lastState"] = {"terminated": ended}

    sim.cluster.edit(POD, key_of(replicas(sim)[0]), was_killed)
    await sim.settle()
    assert {limit_of(pod) - before for pod in replicas(sim)} == {LEAST_GUESS_BYTES}
    assert plan_of(sim)["attempt"] == 1
    assert condition(status(sim), "Ready")["status"] == "True"
    assert await quiet_writes(sim) == []


@pytest.mark.parametrize("is_hopeless", [False, True], ids=["second-fits", "neither-fits"])
async def test_a_kill_of_the_operator_at_any_await_ends_the_same(*, is_hopeless: bool) -> None:
    limit = await first_limit()

    def shortage(pod: Manifest) -> str:
        return "OOMKilled" if is_hopeless or limit_of(pod) <= limit else ""

    calm = Simulation()
    calm.workloads.shortage = shortage
    await begun(calm)
    wanted = calm.children()
    for kill_at in range(calm.num_checkpoints):
        sim = Simulation()
        sim.workloads.shortage = shortage
        sim.kill_at = kill_at
        await begun(sim)
        assert sim.num_kills == 1, kill_at
        assert sim.children() == wanted, kill_at
        assert sim.workloads.num_killed <= 4, kill_at
    assert condition(status(sim), "Ready")["status"] == str(not is_hopeless)
    assert await quiet_writes(sim) == []


async def test_a_second_plan_that_is_too_small_is_given_up_with_numbers() -> None:
    sim = Simulation()
    sim.workloads.shortage = always
    await begun(sim)
    ready = condition(status(sim), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Degraded")
    assert "256.0 MiB were added" in ready["message"]
    assert "spec.context.length" in ready["message"]
    assert condition(status(sim), "Stalled")["reason"] == "Degraded"
    assert condition(status(sim), "Reconciling")["status"] == "False"
    assert condition(status(sim), "Available")["message"] == "0 of 2 replicas ready"
    assert replicas(sim) == []
    assert stateful_set(sim)["spec"]["replicas"] == 0
    assert sim.workloads.num_killed == 4


@pytest.mark.parametrize("change", ["spec", "image"])
async def test_a_change_of_the_spec_or_another_image_tries_again(change: str) -> None:
    sim = Simulation()
    sim.workloads.shortage = always
    await begun(sim)
    sim.workloads.shortage = lambda _pod: ""
    if change == "spec":
        sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"length": 512}))
    else:
        sim.config = sim.config.model_copy(update={"runtime_image": "terrace/runtime:2"})
        sim.controller = sim._new_controller()
    await sim.settle()
    assert condition(status(sim), "Ready")["status"] == "True"
    assert len(replicas(sim)) == 2
    assert names.ANNOTATION_GIVEN_UP not in stateful_set(sim)["metadata"]["annotations"]
    assert plan_of(sim).get("attempt", 0) == (0 if change == "spec" else 1)
    assert await quiet_writes(sim) == []


async def test_number_of_replicas_alone_does_not_try_again() -> None:
    sim = Simulation()
    sim.workloads.shortage = always
    await begun(sim)
    killed = sim.workloads.num_killed
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(replicas=3))
    sim.cluster.put_new(NODE, node("node-b"))
    await sim.settle()
    assert sim.workloads.num_killed == killed
    assert replicas(sim) == []


async def test_without_room_for_the_next_try_it_is_given_up_at_once() -> None:
    limit = await first_limit()
    sim = Simulation()
    sim.workloads.shortage = always
    flavor = {"name": "cpu", "host": {"memory": str(limit)}}
    sim.cluster.put_new(POOL, pool())
    sim.cluster.edit(POOL, POOL_KEY, lambda p: p["spec"].update(flavors=[flavor]))
    sim.cluster.put_new(MODEL, model(context={"length": 2048, "parallel": 4}))
    await sim.settle()
    assert sim.workloads.num_killed == 1
    assert "no flavor has room" in condition(status(sim), "Ready")["message"]
    assert replicas(sim) == []
    assert await quiet_writes(sim) == []


async def test_one_replica_that_is_killed_under_load_takes_no_healthy_one_down() -> None:
    limit = await first_limit()
    sim = Simulation()
    sim.workloads.shortage = lambda pod: "OOMKilled" if limit_of(pod) <= limit else ""
    await begun(sim)
    first = replicas(sim)[0]
    sim.workloads._kill(first, "OOMKilled")
    await sim.settle()
    assert condition(status(sim), "Available")["status"] == "True"
    assert condition(status(sim), "Ready")["reason"] == "Crashing"
    assert len(replicas(sim)) == 2


@pytest.mark.parametrize("code", [EXIT_HOST_MEMORY, EXIT_DEVICE_MEMORY, 1])
async def test_the_runtimes_own_exit_codes_count_as_well(code: int) -> None:
    sim = Simulation()
    sim.workloads.shortage = lambda _pod: "Error"
    sim.workloads.exit_code = code
    await begun(sim)
    killed_for_memory = code != 1
    assert (plan_of(sim).get("attempt", 0) == 1) == killed_for_memory
    reason = condition(status(sim), "Ready")["reason"]
    assert reason == ("Degraded" if killed_for_memory else "Crashing")


async def test_what_a_replica_took_is_in_the_first_plan_of_others_and_restarts_nobody() -> None:
    sim = Simulation()
    await begun(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    limit = limit_of(replicas(sim)[0])
    taken = {
        "image": "terrace/runtime:1",
        "deviceClass": "cpu",
        "plannedHostBytes": 100 * MIB,
        "hostBytes": 190 * MIB,
    }
    sim.cluster.edit(MODEL, DEMO, lambda m: m["status"].update(measured=taken))
    sim.cluster.put_new(MODEL, model("other"))
    await sim.settle()
    sim.controller.is_synced = False
    await sim.settle()
    own = [pod for pod in replicas(sim) if pod["metadata"]["name"].startswith("demo-")]
    (other,) = [pod for pod in replicas(sim) if pod["metadata"]["name"].startswith("other-")]
    assert {pod["metadata"]["uid"] for pod in own} == pods
    assert "memory_limit_bytes" in status(sim)["status"]["plan"]["pending"]["reason"]
    assert limit_of(other) == limit + 96 * MIB
    assert status(sim)["status"]["measured"]["hostBytes"] == 190 * MIB
    assert await quiet_writes(sim) == []


@pytest.mark.parametrize("digits", [12, 64])
async def test_a_plan_that_waits_is_taken_one_by_one_when_asked_for_by_its_digest(
    digits: int,
) -> None:
    sim = Simulation()
    await begun(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.edit(NODE, Key("", "node-a"), lambda n: n["status"]["allocatable"].update(cpu="3"))
    sim.controller = sim._new_controller()
    await sim.settle()
    digest = status(sim)["status"]["plan"]["pending"]["digest"]
    lowest, step = 2, sim.workloads.step

    def watched() -> bool:
        nonlocal lowest
        lowest = min(lowest, sim.workloads.ready_replicas(DEMO))
        return step()

    sim.workloads.step = watched  # type: ignore[method-assign] # looks on
    for wish in (digest[:11], "f" * 64, digest[:digits]):
        assert {pod["metadata"]["uid"] for pod in replicas(sim)} == pods
        wanted = {names.ANNOTATION_TAKE_PLAN: wish}
        sim.cluster.edit(MODEL, DEMO, lambda m, w=wanted: m["metadata"].update(annotations=w))  # type: ignore[misc] # a lambda's default
        await sim.settle()
    assert status(sim)["status"]["plan"]["digest"] == digest
    assert "pending" not in status(sim)["status"]["plan"]
    assert pods.isdisjoint(pod["metadata"]["uid"] for pod in replicas(sim))
    assert lowest == 1
    assert await quiet_writes(sim) == []


async def test_a_file_that_is_still_fetched_brings_no_given_up_replica_back() -> None:
    sim = Simulation()
    sim.workloads.shortage = always
    await begun(sim)
    killed = sim.workloads.num_killed
    sim.workloads.extra_outcome = lambda _spec: None
    adapter = {"name": "a", "source": {"uri": "https://host/a.gguf"}}
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=[adapter]))
    end = sim.time_s + 60
    while sim.time_s < end and await sim._round():
        pass
    assert sim.workloads.num_killed == killed
    assert stateful_set(sim)["spec"]["replicas"] == 0
    assert condition(status(sim), "Ready")["status"] == "False"
