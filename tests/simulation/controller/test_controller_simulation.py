"""The controller against a cluster that fails: it always ends with the same objects."""

from __future__ import annotations

from functools import partial

import pytest

from simulation.controller.simulation import Simulation
from support.controller_objects import condition, model, node, not_fetched, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import (
    CHILD_KINDS,
    CONFIGMAP,
    JOB,
    MODEL,
    NODE,
    POD,
    POOL,
    SECRET,
    SERVICE,
    STATEFULSET,
    Manifest,
    labels_of,
)

DEMO = Key("default", "demo")
POOL_KEY = Key("default", "default")


async def created(sim: Simulation) -> None:
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=2))
    await sim.settle()


async def changed(sim: Simulation) -> None:
    await created(sim)
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"length": 512}, replicas=3))
    await sim.settle()
    sim.cluster.vanish(SERVICE, DEMO)
    await sim.settle()


async def moved(sim: Simulation) -> None:
    sim.cluster.put_new(NODE, node("node-big", labels={"flavor": "big"}))
    await created(sim)
    big = {"name": "big", "nodeSelector": {"flavor": "big"}}
    sim.cluster.edit(POOL, POOL_KEY, lambda p: p["spec"].update(flavors=[big]))
    await sim.settle()


SCENARIOS = {"created": created, "changed": changed, "moved": moved}


def status(sim: Simulation, key: Key = DEMO) -> Manifest:
    return sim.cluster.objects[MODEL, key]


async def quiet_writes(sim: Simulation) -> list[str]:
    """Writes of a restarted operator and of a full list on a cluster that is as it should be."""
    before = len(sim.cluster.writes)
    sim.controller = sim._new_controller()
    await sim.settle()
    sim.controller.is_synced = False
    await sim.settle()
    return sim.cluster.writes[before:]


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

    sim.workloads.step = watched  # type: ignore[method-assign]
    before = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"parallel": 2}))
    await sim.settle()
    assert lowest == 2
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in replicas(sim))


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


async def test_a_permanent_failure_stalls_without_pod_churn() -> None:
    sim = Simulation()
    sim.workloads.outcome = lambda: not_fetched("InvalidModel", "no GGUF magic", permanent=True)
    await created(sim)
    cached = condition(status(sim), "ModelCached")
    assert (cached["status"], cached["reason"]) == ("False", "InvalidModel")
    assert "no GGUF magic" in cached["message"]
    assert condition(status(sim), "Stalled")["status"] == "True"
    assert replicas(sim) == []
    before = len(sim.cluster.of_kind(POD))
    sim.time_s += 3600
    await sim.settle()
    assert len(sim.cluster.of_kind(POD)) == before == 1


async def test_a_transient_failure_is_tried_again() -> None:
    sim = Simulation()
    outcomes = [not_fetched("DownloadFailed", "connection reset", permanent=False)]
    good = sim.workloads.outcome
    sim.workloads.outcome = lambda: outcomes.pop() if outcomes else good()
    await created(sim)
    assert condition(status(sim), "Ready")["status"] == "True"
    assert sim.cluster.writes.count("apply Job default/demo-fetch") == 2


async def test_facts_outlive_the_job_s_pod() -> None:
    sim = Simulation()
    await created(sim)
    for pod in sim.cluster.of_kind(POD):
        if labels_of(pod)[names.COMPONENT] == "fetch":
            sim.cluster.vanish(POD, Key("default", pod["metadata"]["name"]))
    sim.controller = sim._new_controller()
    sim.time_s += 3600
    await sim.settle()
    assert condition(status(sim), "Ready")["status"] == "True"
    assert sim.cluster.writes.count("apply Job default/demo-fetch") == 1


async def test_a_replica_without_its_file_makes_the_job_run_again() -> None:
    sim = Simulation()
    await created(sim)
    pod = replicas(sim)[0]
    sim.time_s += 100
    ended = {"exitCode": 12, "finishedAt": sim.now().strftime("%Y-%m-%dT%H:%M:%SZ")}
    statuses = [{"name": "runtime", "ready": False, "lastState": {"terminated": ended}}]
    sim.cluster.edit(
        POD,
        Key("default", pod["metadata"]["name"]),
        lambda p: p["status"].update(conditions=[], containerStatuses=statuses),
    )
    sim.time_s += 10
    await sim.settle()
    assert sim.cluster.writes.count("delete Job default/demo-fetch") == 1
    assert sim.cluster.writes.count("apply Job default/demo-fetch") == 2


async def test_a_missing_pool_leaves_running_replicas_alone() -> None:
    sim = Simulation()
    await created(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.vanish(POOL, POOL_KEY)
    await sim.settle()
    placed = condition(status(sim), "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "PoolNotFound")
    assert condition(status(sim), "Available")["status"] == "True"
    assert {pod["metadata"]["uid"] for pod in replicas(sim)} == pods
    sim.cluster.put_new(POOL, pool())
    await sim.settle()
    assert condition(status(sim), "Placed")["status"] == "True"


async def test_the_older_model_keeps_a_contested_name_and_the_other_gets_it_afterwards() -> None:
    sim = Simulation()
    await created(sim)
    sim.time_s += 60
    other = Key("other", "second")
    sim.cluster.put_new(POOL, pool(namespace="other"))
    sim.cluster.put_new(MODEL, model("second", "other", servedNames=["demo", "mine"]))
    await sim.settle()
    assert status(sim)["status"]["servedNames"] == ["demo"]
    assert status(sim, other)["status"]["servedNames"] == ["mine"]
    stalled = condition(status(sim, other), "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NameConflict")
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    sim.cluster.vanish(MODEL, DEMO)
    await sim.settle()
    assert status(sim, other)["status"]["servedNames"] == ["demo", "mine"]
    assert condition(status(sim, other), "Stalled")["status"] == "False"
    assert {pod["metadata"]["uid"] for pod in replicas(sim)} < pods


async def test_a_model_that_fits_nowhere_is_placed_when_a_node_joins() -> None:
    sim = Simulation()
    await created(sim)
    big = Key("default", "big")
    selector = [{"name": "gold", "nodeSelector": {"gold": "yes"}}]
    sim.cluster.put_new(POOL, pool("gold") | {"spec": {"flavors": selector}})
    sim.cluster.put_new(MODEL, model("big", pool="gold"))
    await sim.settle()
    assert condition(status(sim, big), "Placed")["reason"] == "NoNodeFits"
    sim.cluster.put_new(NODE, node("node-g", labels={"gold": "yes"}))
    await sim.settle()
    assert condition(status(sim, big), "Ready")["status"] == "True"


async def test_a_lost_node_does_not_unplace_what_runs() -> None:
    sim = Simulation()
    await created(sim)
    pods = {pod["metadata"]["uid"] for pod in replicas(sim)}
    not_ready = [{"type": "Ready", "status": "False"}]
    sim.cluster.edit(
        NODE, Key("", "node-a"), lambda live: live["status"].update(conditions=not_ready)
    )
    await sim.settle()
    await sim.controller.resync()
    await sim.settle()
    assert condition(status(sim), "Placed")["status"] == "True"
    assert {pod["metadata"]["uid"] for pod in replicas(sim)} == pods


async def test_allowed_networks_make_a_refused_fetch_run_again_and_no_other() -> None:
    sim = Simulation()
    refused = not_fetched("AddressRefused", "10.0.0.1 is private", permanent=True)
    good = sim.workloads.outcome
    sim.workloads.outcome = lambda: refused
    await created(sim)
    sim.workloads.outcome = good
    for networks in (["10.0.0.0/8"], ["10.0.0.0/8", "192.168.0.0/16"]):
        access = {"access": {"allowedNetworks": networks}}
        sim.cluster.edit(POOL, POOL_KEY, partial(update_spec, access))
        await sim.settle()
        assert condition(status(sim), "Ready")["status"] == "True"
        assert sim.cluster.writes.count("apply Job default/demo-fetch") == 2


async def test_a_foreign_object_is_never_touched() -> None:
    sim = Simulation()
    foreign = {"metadata": {"name": "demo", "namespace": "default"}, "spec": {"ports": []}}
    sim.cluster.put_new(SERVICE, foreign)
    before = sim.cluster.objects[SERVICE, DEMO]
    await created_for(sim, 120)
    assert sim.cluster.objects[SERVICE, DEMO] == before
    stalled = condition(status(sim), "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ForeignObject")
    assert "Service default/demo" in stalled["message"]
    sim.cluster.vanish(SERVICE, DEMO)
    await sim.settle()
    assert condition(status(sim), "Ready")["status"] == "True"


async def test_an_invalid_stored_spec_stalls_and_leaves_its_children() -> None:
    sim = Simulation()
    await created(sim)
    children = sim.children()
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(colour="blue", context={"length": 1}))
    await sim.settle()
    stalled = condition(status(sim), "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert "spec.colour" in stalled["message"]
    assert sim.children() == children


async def test_old_configs_go_once_nothing_mounts_them() -> None:
    sim = Simulation()
    await created(sim)
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(context={"parallel": 2}))
    await sim.settle()
    await sim.controller.resync()
    await sim.settle()
    assert len(sim.cluster.of_kind(CONFIGMAP)) == 1
    assert len(sim.cluster.of_kind(JOB)) == 1


def update_spec(fields: Manifest, live: Manifest) -> None:
    live["spec"].update(fields)


async def created_for(sim: Simulation, seconds: float) -> None:
    """As ``created``, for a model that never settles: it is looked at again and again."""
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=2))
    end = sim.time_s + seconds
    while sim.time_s < end and await sim._round():
        pass


def replicas(sim: Simulation) -> list[Manifest]:
    return [
        pod for pod in sim.cluster.of_kind(POD) if labels_of(pod).get(names.COMPONENT) == "runtime"
    ]
