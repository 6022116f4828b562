"""Disruption budgets in virtual time: they come and go with the second replica, and never first."""

from __future__ import annotations

import copy

from simulation.controller.scenarios import DEMO, status
from simulation.controller.simulation import Simulation
from simulation.controller.test_echoes import SOON, deliver, passed, scale, set_replicas, work
from support.controller_objects import model, pool
from terrace.controller.echoes import ECHO_S
from terrace.controller.kinds import BUDGET, MODEL, POOL


async def created(sim: Simulation, replicas: int) -> None:
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=replicas))
    await sim.settle()


def num_budgets(sim: Simulation) -> int:
    return len(sim.cluster.of_kind(BUDGET))


async def test_a_budget_comes_and_goes_with_the_second_replica() -> None:
    sim = Simulation()
    await created(sim, 1)
    assert num_budgets(sim) == 0
    for replicas, num in ((2, 1), (3, 1), (1, 0), (2, 1), (0, 0)):
        scale(sim, replicas)
        await sim.settle()
        assert num_budgets(sim) == num


async def test_replicas_are_asked_for_at_once_and_protected_with_the_next_look() -> None:
    sim = Simulation()
    await created(sim, 1)
    await passed(sim, 10)
    before = len(sim.cluster.writes)
    scale(sim, 2)
    deliver(sim)
    await work(sim)
    assert (set_replicas(sim), num_budgets(sim)) == ([2], 0)
    await passed(sim, ECHO_S + SOON)
    writes = [" ".join(write.split()[:2]) for write in sim.cluster.writes[before:]]
    assert writes == ["apply StatefulSet", "apply PodDisruptionBudget", "status InferenceModel"]


async def test_replicas_are_protected_by_who_comes_after_a_killed_operator() -> None:
    sim = Simulation()
    await created(sim, 1)
    scale(sim, 2)
    deliver(sim)
    await work(sim)
    assert num_budgets(sim) == 0
    sim.controller = sim._new_controller()
    await sim.settle()
    assert num_budgets(sim) == 1


async def test_the_budget_that_an_earlier_version_gave_a_lone_replica_goes() -> None:
    sim = Simulation()
    await created(sim, 2)
    (earlier,) = copy.deepcopy(sim.cluster.of_kind(BUDGET))
    scale(sim, 1)
    await sim.settle()
    sim.cluster.put_new(BUDGET, earlier)
    sim.controller = sim._new_controller()
    await sim.settle()
    assert num_budgets(sim) == 0
    assert status(sim)["status"]["readyReplicas"] == 1


async def test_somebody_else_s_budget_is_left_alone() -> None:
    sim = Simulation()
    metadata = {"name": "theirs", "namespace": DEMO.namespace}
    sim.cluster.put_new(BUDGET, {"metadata": metadata, "spec": {"maxUnavailable": 0}})
    await created(sim, 1)
    assert [each["metadata"]["name"] for each in sim.cluster.of_kind(BUDGET)] == ["theirs"]


async def test_a_pool_is_not_looked_at_for_a_change_of_replicas() -> None:
    sim = Simulation()
    await created(sim, 1)
    await passed(sim, 60)
    reconciles = sim.controller.metrics.reconciles.labels(POOL.kind, "success")
    before = reconciles._value.get()
    scale(sim, 2)
    await passed(sim, 60)
    assert reconciles._value.get() == before
    sim.cluster.put_new(MODEL, model("other"))
    await passed(sim, 60)
    assert reconciles._value.get() > before
    (stored,) = sim.cluster.of_kind(POOL)
    assert stored["status"]["models"] == 2
