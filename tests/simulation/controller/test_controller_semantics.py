"""What the controller does about pools, names, files, nodes and objects of others."""

from __future__ import annotations

from functools import partial

import pytest

from simulation.controller.scenarios import (
    DEMO,
    POOL_KEY,
    created,
    created_for,
    replicas,
    status,
    update_spec,
)
from simulation.controller.simulation import Simulation
from support.controller_objects import condition, model, node, not_fetched, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import (
    CONFIGMAP,
    JOB,
    MODEL,
    NODE,
    POD,
    POOL,
    SERVICE,
    Manifest,
    labels_of,
)


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


@pytest.mark.parametrize(
    "spec", [{"unschedulable": True}, {"taints": [{"key": "k", "effect": "NoSchedule"}]}]
)
async def test_files_are_fetched_where_pods_may_run(spec: Manifest) -> None:
    sim = Simulation()
    for name in ("closed", "open"):
        sim.cluster.put_new(NODE, node(f"node-{name}", labels={"flavor": name}))
    sim.cluster.edit(NODE, Key("", "node-closed"), lambda live: live["spec"].update(spec))
    sim.cluster.put_new(POOL, pool(flavors=("closed", "open")))
    sim.cluster.put_new(MODEL, model())
    await sim.settle()
    (job,) = sim.cluster.of_kind(JOB)
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"flavor": "open"}
    assert status(sim)["status"]["placement"]["flavor"] == "open"


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
