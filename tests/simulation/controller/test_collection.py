"""Files that no model uses any more are deleted when their time is up, and no others."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from simulation.controller.scenarios import (
    POOL_KEY,
    adapter,
    collected,
    quiet_writes,
    run_until,
    status,
)
from simulation.controller.simulation import Simulation
from support.controller_objects import DIGEST, condition, model, pool
from terrace.api.names import Key
from terrace.controller.kinds import JOB, MODEL, POOL
from terrace_runtime.contract import PruneOutcome, PruneSpec

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest

AFTER_S = 100
CACHE = {"size": "1Gi", "deleteUnusedAfterSeconds": AFTER_S}
OTHER = Key("default", "other")


class Disk:
    """What the prune Jobs deleted."""

    def __init__(self, sim: Simulation) -> None:
        self.freed: list[str] = []
        self.asked: list[tuple[float, PruneSpec]] = []
        self.kept: set[str] = set()
        self._sim = sim
        sim.workloads.pruned = self.prune

    def prune(self, spec: PruneSpec) -> PruneOutcome:
        self.asked.append((self._sim.time_s, spec))
        freed = tuple(digest for digest in spec.digests if digest not in self.kept)
        self.freed += freed
        return PruneOutcome(freed=freed, kept=tuple(self.kept & {*spec.digests}))


def files(sim: Simulation) -> dict[str, Manifest]:
    status = sim.cluster.objects[POOL, POOL_KEY].get("status") or {}
    return {file["digest"]: file for file in status.get("files") or ()}


def prune_jobs(sim: Simulation) -> list[Manifest]:
    return [job for job in sim.cluster.of_kind(JOB) if job["metadata"]["name"] == "default-prune"]


def adapter_digest(sim: Simulation, key: Key) -> str:
    return str(status(sim, key)["status"]["adapters"][0]["digest"])


async def two_models(sim: Simulation, **cache: object) -> str:
    """One with an adapter of its own; returns the adapter's digest."""
    sim.cluster.put_new(POOL, pool(modelCache=CACHE | cache))
    sim.cluster.put_new(MODEL, model())
    sim.cluster.put_new(MODEL, model("other", adapters=[adapter("a")]))
    await sim.settle()
    return adapter_digest(sim, OTHER)


async def test_a_file_that_nobody_uses_any_more_goes_when_its_time_is_up() -> None:
    sim = Simulation()
    disk = Disk(sim)
    digest = await two_models(sim)
    assert {d: "unusedSince" in f for d, f in files(sim).items()} == {DIGEST: False, digest: False}
    left_at = sim.time_s
    sim.cluster.vanish(MODEL, OTHER)
    await sim.settle()
    assert disk.freed == [digest]  # The model file is another model's as well.
    ((at_s, spec),) = disk.asked
    assert at_s - left_at >= AFTER_S
    assert spec.unused_seconds == AFTER_S
    assert set(files(sim)) == {DIGEST}
    assert prune_jobs(sim) == []
    assert await quiet_writes(sim) == []


async def test_files_of_a_model_that_was_deleted_while_no_operator_ran_go_as_well() -> None:
    sim = Simulation()
    disk = Disk(sim)
    digest = await two_models(sim)
    sim.cluster.vanish(MODEL, OTHER)
    sim.cluster.events.clear()
    sim.controller = sim._new_controller()
    await sim.settle()
    assert disk.freed == [digest]
    assert set(files(sim)) == {DIGEST}


async def test_without_the_policy_nothing_is_noted_or_deleted() -> None:
    sim = Simulation()
    disk = Disk(sim)
    await two_models(sim, deleteUnusedAfterSeconds=None)
    sim.cluster.vanish(MODEL, OTHER)
    await sim.settle()
    assert (disk.asked, files(sim)) == ([], {})


async def test_a_file_that_is_wanted_again_before_its_time_stays() -> None:
    sim = Simulation()
    disk = Disk(sim)
    digest = await two_models(sim)
    sim.cluster.vanish(MODEL, OTHER)
    await run_until(sim, lambda: "unusedSince" in files(sim)[digest])
    sim.cluster.put_new(MODEL, model("third", adapters=[adapter("a")]))
    await sim.settle()
    assert disk.asked == []
    assert "unusedSince" not in files(sim)[digest]


async def test_a_model_that_comes_while_its_file_is_deleted_becomes_ready_all_the_same() -> None:
    sim = Simulation()
    disk = Disk(sim)
    digest = await two_models(sim)
    sim.cluster.vanish(MODEL, OTHER)
    sim.workloads.pruned = lambda _spec: None
    await run_until(sim, lambda: bool(prune_jobs(sim)))
    sim.cluster.put_new(MODEL, model("third", adapters=[adapter("a")]))
    for _ in range(60):
        await sim._round()
    sim.workloads.pruned = disk.prune
    await sim.settle()
    assert disk.freed == [digest]
    assert condition(status(sim, Key("default", "third")), "Ready")["status"] == "True"
    assert "unusedSince" not in files(sim)[digest]  # It was fetched again, and is in use.


async def test_what_a_fetch_holds_is_asked_for_again_later() -> None:
    sim = Simulation()
    disk = Disk(sim)
    digest = await two_models(sim)
    disk.kept = {digest}
    sim.cluster.vanish(MODEL, OTHER)
    await run_until(sim, lambda: len(disk.asked) == 3)
    times = [at_s for at_s, _ in disk.asked]
    assert min(b - a for a, b in pairwise(times)) >= AFTER_S
    disk.kept = set()
    await sim.settle()
    assert disk.freed == [digest]


async def test_a_job_that_leaves_no_word_is_made_again_after_a_while() -> None:
    sim = Simulation()
    disk = Disk(sim)
    digest = await two_models(sim)
    told: list[float] = []

    def silent(spec: PruneSpec) -> PruneOutcome | None:
        told.append(sim.time_s)
        if len(told) > 2:
            return disk.prune(spec)
        return PruneOutcome.model_validate(
            {"failure": {"reason": "DiskFull", "message": "no", "permanent": False}}
        )

    sim.workloads.pruned = silent
    sim.cluster.vanish(MODEL, OTHER)
    await sim.settle()
    assert disk.freed == [digest]
    assert min(round(b - a, 6) for a, b in pairwise(told)) >= 60


async def test_pools_that_share_a_claim_keep_each_others_files() -> None:
    sim = Simulation()
    disk = Disk(sim)
    shared = {"claimName": "shared", "deleteUnusedAfterSeconds": AFTER_S}
    sim.cluster.put_new(POOL, pool(modelCache=shared))
    sim.cluster.put_new(POOL, pool("second", modelCache={"claimName": "shared"}))
    sim.cluster.put_new(MODEL, model(adapters=[adapter("a")]))
    sim.cluster.put_new(MODEL, model("other", pool="second", adapters=[adapter("b", A)]))
    await sim.settle()
    sim.cluster.vanish(MODEL, Key("default", "demo"))
    await sim.settle()
    assert disk.asked == []
    sim.cluster.vanish(MODEL, OTHER)
    await sim.settle()
    await sim.controller.resync()  # The pool learns of the other's models with the next full list.
    await sim.settle()
    assert len(disk.freed) == 2


A = "https://host/a.gguf"


async def test_replicas_that_go_on_with_an_older_adapter_keep_its_file() -> None:
    sim = Simulation()
    disk = Disk(sim)
    sim.cluster.put_new(POOL, pool(modelCache=CACHE | {"deleteUnusedAfterSeconds": 0}))
    sim.cluster.put_new(MODEL, model(adapters=[adapter("a")]))
    await sim.settle()
    old = adapter_digest(sim, Key("default", "demo"))
    fetch = sim.workloads.extra_outcome
    sim.workloads.extra_outcome = lambda spec: None if "slow" in spec.uri else fetch(spec)
    changed = [adapter("a", "https://host/slow.gguf")]
    sim.cluster.edit(MODEL, Key("default", "demo"), lambda m: m["spec"].update(adapters=changed))
    for _ in range(200):
        await sim._round()
    assert disk.asked == []
    sim.workloads.extra_outcome = fetch
    await sim.settle()
    await sim.controller.resync()
    await sim.settle()
    assert disk.freed == [old]


async def test_nothing_is_left_behind_by_the_whole_life() -> None:
    sim = Simulation()
    disk = Disk(sim)
    await collected(sim)
    assert len(disk.freed) == 1
