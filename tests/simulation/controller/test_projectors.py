"""A projector in the life of a model: fetched first, told to replicas, refused without a pod."""

from __future__ import annotations

from simulation.controller.scenarios import DEMO, quiet_writes, replicas, run_until, status
from simulation.controller.simulation import Simulation
from simulation.controller.test_extra_files import running, slow_fetch, told, uids
from support.controller_objects import (
    condition,
    fetched_for,
    model,
    not_fetched,
    pool,
    projector_facts,
)
from terrace.controller.kinds import MODEL, POOL, STATEFULSET, Manifest
from terrace_runtime.contract import FetchOutcome

PROJECTOR: Manifest = {"projector": {"uri": "https://host/mmproj.gguf"}}


async def test_a_projector_is_fetched_before_any_pod_and_told_to_replicas() -> None:
    sim = Simulation()
    sim.workloads.extra_outcome = lambda _: None
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(**PROJECTOR))
    await run_until(sim, lambda: condition(status(sim), "ModelCached").get("reason") == "Fetching")
    assert condition(status(sim), "ModelCached")["message"] == "the fetch Job reads the projector"
    assert replicas(sim) == []
    sim.workloads.extra_outcome = fetched_for
    await sim.settle()
    shown, config = status(sim)["status"], told(sim)
    assert shown["projector"]["uri"] == PROJECTOR["projector"]["uri"]
    assert shown["projector"]["projectorType"] == "idefics3"
    assert config.projector_path == shown["projector"]["path"]
    assert config.projector_digest == shown["projector"]["digest"]
    assert any(reason.startswith("projector: ") for reason in shown["plan"]["reasons"])
    assert condition(status(sim), "ModelCached")["message"].endswith("with the projector")
    assert condition(status(sim), "Ready")["status"] == "True"
    assert await quiet_writes(sim) == []


async def test_another_projector_is_fetched_while_replicas_go_on_and_then_they_roll() -> None:
    sim = Simulation()
    await running(sim, **PROJECTOR)
    before, config = uids(sim), told(sim)
    sim.workloads.extra_outcome = slow_fetch
    other = {"uri": "https://host/slow-mmproj.gguf"}
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(projector=other))
    await run_until(sim, lambda: condition(status(sim), "ModelCached")["status"] == "False")
    for _ in range(50):
        await sim._round()
    assert (uids(sim), told(sim)) == (before, config)
    sim.workloads.extra_outcome = fetched_for
    await sim.settle()
    assert before.isdisjoint(uids(sim))
    assert told(sim).projector_path == status(sim)["status"]["projector"]["path"]
    assert told(sim).projector_path != config.projector_path
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].pop("projector"))
    await sim.settle()
    assert told(sim).projector_path == told(sim).projector_digest == ""
    assert "projector" not in status(sim)["status"]


async def test_a_projector_of_another_model_makes_no_pod_and_its_condition_says_both_widths() -> (
    None
):
    sim = Simulation()
    wide = FetchOutcome(path="/models/p.gguf", projector=projector_facts(output_length=960))
    sim.workloads.extra_outcome = lambda _: wide
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(**PROJECTOR))
    await sim.settle()
    placed = condition(status(sim), "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "InvalidProjector")
    assert "rows of 960 values, the model takes 256" in placed["message"]
    assert condition(status(sim), "Stalled")["status"] == "True"
    assert replicas(sim) == []
    assert sim.cluster.of_kind(STATEFULSET) == []


async def test_a_projector_that_the_fetch_refuses_is_told_and_makes_no_pod() -> None:
    sim = Simulation()
    words = "the file under spec.projector is a projector of the kind mimovl"
    refused = not_fetched("UnsupportedFormat", words, permanent=True)
    sim.workloads.extra_outcome = lambda _: refused
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(**PROJECTOR))
    await sim.settle()
    cached = condition(status(sim), "ModelCached")
    assert (cached["status"], cached["reason"]) == ("False", "UnsupportedFormat")
    assert cached["message"].startswith(f"the projector: {words}")
    assert replicas(sim) == []


async def test_replicas_go_on_when_a_projector_that_does_not_fit_is_named() -> None:
    sim = Simulation()
    await running(sim, **PROJECTOR)
    before, config = uids(sim), told(sim)
    wide = FetchOutcome(path="/models/p.gguf", projector=projector_facts(output_length=960))
    sim.workloads.extra_outcome = lambda _: wide
    other = {"uri": "https://host/other-mmproj.gguf"}
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(projector=other))
    await sim.settle()
    assert condition(status(sim), "Placed")["reason"] == "InvalidProjector"
    assert condition(status(sim), "Available")["status"] == "True"
    assert (uids(sim), told(sim)) == (before, config)
    sim.workloads.extra_outcome = fetched_for
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(PROJECTOR))
    await sim.settle()
    assert condition(status(sim), "Ready")["status"] == "True"
    assert uids(sim) == before
