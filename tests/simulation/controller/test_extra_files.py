"""Draft and adapters in the life of a model: fetched first, and nothing stops for them."""

from __future__ import annotations

from typing import Any

from simulation.controller.scenarios import (
    DEMO,
    adapter,
    extended,
    quiet_writes,
    replicas,
    run_until,
    status,
)
from simulation.controller.simulation import Simulation
from support.controller_objects import condition, fetched, fetched_for, model, not_fetched, pool
from terrace.api.names import Key
from terrace.controller.kinds import CONFIGMAP, JOB, MODEL, POD, POOL, STATEFULSET, Manifest
from terrace_runtime.contract import (
    EXIT_MODEL_MISSING,
    RUNTIME_CONFIG_FILE,
    FetchOutcome,
    FetchSpec,
    RuntimeConfig,
)

DRAFT: Manifest = {"draft": {"uri": "demo://draft"}, "speculation": {"mode": "Draft"}}


def told(sim: Simulation) -> RuntimeConfig:
    """What replicas of the set are told now."""
    template = sim.cluster.objects[STATEFULSET, Key("default", "demo-cpu")]["spec"]["template"]
    (name,) = [v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v]
    config = sim.cluster.objects[CONFIGMAP, Key("default", name)]
    return RuntimeConfig.model_validate_json(config["data"][RUNTIME_CONFIG_FILE])


def jobs(sim: Simulation) -> set[str]:
    return {job["metadata"]["name"] for job in sim.cluster.of_kind(JOB)}


async def running(sim: Simulation, **spec: Any) -> None:
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=2, **spec))
    await sim.settle()


def uids(sim: Simulation) -> set[str]:
    return {pod["metadata"]["uid"] for pod in replicas(sim)}


def slow_fetch(spec: FetchSpec) -> FetchOutcome | None:
    return None if "slow" in spec.uri else fetched_for(spec)


async def test_replicas_are_told_of_all_files_and_only_when_all_are_there() -> None:
    sim = Simulation()
    sim.workloads.extra_outcome = slow_fetch
    sim.cluster.put_new(POOL, pool())
    adapters = [adapter("poet"), adapter("slow")]
    sim.cluster.put_new(MODEL, model(**DRAFT, adapters=adapters))
    await run_until(sim, lambda: condition(status(sim), "ModelCached").get("reason") == "Fetching")
    await run_until(sim, lambda: len(status(sim)["status"].get("adapters", [])) == 1)
    assert replicas(sim) == []
    message = condition(status(sim), "ModelCached")["message"]
    assert message == "the fetch Job reads adapter slow"
    sim.workloads.extra_outcome = fetched_for
    await sim.settle()
    config = told(sim)
    assert config.speculation.mode == "draft"
    assert config.speculation.draft_path == status(sim)["status"]["draft"]["path"]
    assert [(a.name, a.path) for a in config.adapters] == [
        (a["name"], a["path"]) for a in status(sim)["status"]["adapters"]
    ]
    assert status(sim)["status"]["servedNames"] == ["demo", "poet", "slow"]
    assert condition(status(sim), "ModelCached")["message"].endswith(
        "with the draft, adapter poet, adapter slow"
    )
    assert len(jobs(sim)) == 4
    assert await quiet_writes(sim) == []


async def test_a_new_adapter_is_fetched_while_replicas_go_on_and_only_then_they_roll() -> None:
    sim = Simulation()
    sim.workloads.extra_outcome = slow_fetch
    await running(sim, adapters=[adapter("poet")])
    before, config = uids(sim), told(sim)
    adapters = [adapter("poet"), adapter("slow")]
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=adapters, replicas=3))
    await run_until(sim, lambda: len(replicas(sim)) == 3)
    await run_until(sim, lambda: condition(status(sim), "ModelCached")["status"] == "False")
    assert before < uids(sim)
    assert told(sim) == config
    assert condition(status(sim), "Available")["status"] == "True"
    assert condition(status(sim), "Ready")["reason"] in ("Fetching", "FetchPending")
    assert status(sim)["status"]["servedNames"] == ["demo", "poet"]
    assert status(sim)["status"]["plan"]["digest"] == config.plan_digest
    lowest = 3
    published: list[set[str]] = []
    step = sim.workloads.step

    def watched() -> bool:
        nonlocal lowest
        lowest = min(lowest, sim.workloads.ready_replicas(DEMO))
        if "slow" in status(sim)["status"]["servedNames"]:
            published.append(before & uids(sim))
        return step()

    sim.workloads.step = watched  # type: ignore[method-assign] # looks on
    sim.workloads.extra_outcome = fetched_for
    await sim.settle()
    assert lowest == 2
    assert [a.name for a in told(sim).adapters] == ["poet", "slow"]
    assert before.isdisjoint(uids(sim))
    assert status(sim)["status"]["servedNames"] == ["demo", "poet", "slow"]
    assert published[0] == set()  # Nobody was sent to a replica that lacks it.


async def test_a_held_model_gets_what_was_edited_away_and_a_new_trust_key() -> None:
    sim = Simulation()
    sim.workloads.extra_outcome = slow_fetch
    await running(sim, adapters=[adapter("poet")])
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=[adapter("slow")]))
    await run_until(sim, lambda: condition(status(sim), "ModelCached")["status"] == "False")
    sim.controller.context.trust_key = "B" * 43
    sim.cluster.edit(
        STATEFULSET, Key("default", "demo-cpu"), lambda s: s["metadata"]["labels"].clear()
    )
    await run_until(sim, lambda: told(sim).trust_key == "B" * 43)
    assert [a.name for a in told(sim).adapters] == ["poet"]


async def test_a_file_that_fails_is_named_and_nothing_stops() -> None:
    sim = Simulation()
    await running(sim, adapters=[adapter("poet")])
    before = uids(sim)
    gone = not_fetched("NotFound", "404 from host", permanent=True)
    sim.workloads.extra_outcome = lambda spec: gone if "bad" in spec.uri else fetched_for(spec)
    adapters = [adapter("poet"), adapter("bad")]
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=adapters))
    await sim.settle()
    cached = condition(status(sim), "ModelCached")
    assert (cached["status"], cached["reason"]) == ("False", "NotFound")
    assert cached["message"].startswith("adapter bad: 404 from host; mend its source")
    assert condition(status(sim), "Stalled")["status"] == "True"
    assert condition(status(sim), "Available")["status"] == "True"
    assert uids(sim) == before
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=[adapter("poet")]))
    await sim.settle()
    assert condition(status(sim), "Ready")["status"] == "True"
    assert uids(sim) == before
    assert len(jobs(sim)) == 2


async def test_jobs_of_files_that_are_named_no_more_go_and_one_source_has_one_job() -> None:
    sim = Simulation()
    same = "https://host/same.gguf"
    await running(sim, adapters=[adapter("a", same), adapter("b", same), adapter("c")])
    assert len(jobs(sim)) == 3
    assert [entry["name"] for entry in status(sim)["status"]["adapters"]] == ["a", "b", "c"]
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=[adapter("b", same)]))
    await sim.settle()
    assert len(jobs(sim)) == 2
    assert [entry["name"] for entry in status(sim)["status"]["adapters"]] == ["b"]
    assert condition(status(sim), "Ready")["status"] == "True"


async def test_an_emptied_cache_is_filled_again_with_all_files() -> None:
    sim = Simulation()
    await extended(sim)
    before = {job["metadata"]["uid"] for job in sim.cluster.of_kind(JOB)}
    pod = replicas(sim)[0]
    sim.time_s += 60
    stamp = sim.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": EXIT_MODEL_MISSING, "finishedAt": stamp}
    sim.cluster.edit(
        POD,
        Key("default", pod["metadata"]["name"]),
        lambda p: p["status"]["containerStatuses"][0].update(lastState={"terminated": ended}),
    )
    await sim.settle()
    assert before.isdisjoint(job["metadata"]["uid"] for job in sim.cluster.of_kind(JOB))


async def test_another_secret_fetches_nothing_again_that_is_there() -> None:
    sim = Simulation()
    source = {"uri": "https://host/a.gguf", "secretRef": {"name": "one"}}
    await running(sim, source=source, adapters=[{"name": "a", "source": source}])
    before = {job["metadata"]["uid"] for job in sim.cluster.of_kind(JOB)}
    pods = uids(sim)
    for job in sim.cluster.of_kind(JOB):
        volumes = job["spec"]["template"]["spec"]["volumes"]
        assert {"secretName": "one", "defaultMode": 0o440} in [v.get("secret") for v in volumes]
    other = {**source, "secretRef": {"name": "two"}}
    sim.cluster.edit(
        MODEL,
        DEMO,
        lambda m: m["spec"].update(source=other, adapters=[{"name": "a", "source": other}]),
    )
    await sim.settle()
    assert {job["metadata"]["uid"] for job in sim.cluster.of_kind(JOB)} == before
    assert uids(sim) == pods
    for pod in replicas(sim):
        assert not [v for v in pod["spec"]["volumes"] if "secret" in v]


async def test_names_of_adapters_are_claimed_as_served_names_are() -> None:
    sim = Simulation()
    await running(sim, adapters=[adapter("poet")])
    sim.time_s += 5
    sim.cluster.put_new(MODEL, model("younger", servedNames=["poet"]))
    await sim.settle()
    younger = status(sim, Key("default", "younger"))
    assert condition(younger, "Stalled")["reason"] == "NameConflict"
    assert younger["status"]["servedNames"] == []
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].pop("adapters"))
    await sim.settle()
    assert status(sim, Key("default", "younger"))["status"]["servedNames"] == ["poet"]


def claims(sim: Simulation) -> set[str]:
    """Claims of model files that Jobs and the set mount."""
    owners = [*sim.cluster.of_kind(JOB), *sim.cluster.of_kind(STATEFULSET)]
    volumes = [v for owner in owners for v in owner["spec"]["template"]["spec"]["volumes"]]
    return {
        v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
    }


async def test_a_model_that_moves_to_another_cache_serves_until_all_its_files_are_there() -> None:
    sim = Simulation()
    await running(sim, adapters=[adapter("poet"), adapter("slow")])
    before = uids(sim)
    sim.workloads.outcome = lambda: None
    sim.workloads.extra_outcome = slow_fetch
    sim.cluster.put_new(POOL, pool("other"))
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(poolRef={"name": "other"}))
    await run_until(sim, lambda: claims(sim) == {"default-models", "other-models"})
    for _ in range(100):
        await sim._round()
    assert uids(sim) == before
    sim.workloads.outcome = fetched
    for _ in range(100):
        await sim._round()
    assert uids(sim) == before
    template = sim.cluster.objects[STATEFULSET, Key("default", "demo-cpu")]["spec"]["template"]
    (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "model"]
    assert volume["persistentVolumeClaim"]["claimName"] == "default-models"
    assert condition(status(sim), "Available")["status"] == "True"
    sim.workloads.extra_outcome = fetched_for
    await sim.settle()
    assert claims(sim) == {"other-models"}
    assert before.isdisjoint(uids(sim))
    assert condition(status(sim), "Ready")["status"] == "True"
    assert await quiet_writes(sim) == []
