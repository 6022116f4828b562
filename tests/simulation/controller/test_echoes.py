"""What goes at once and what waits, in virtual time: nothing is lost, and nothing told late."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from simulation.controller.scenarios import DEMO, created, replicas, run_until, status
from simulation.controller.simulation import Simulation
from support.controller_objects import condition, model, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.echoes import BURST_ECHO_S, ECHO_S
from terrace.controller.kinds import (
    CHILD_KINDS,
    MODEL,
    POD,
    POOL,
    STATEFULSET,
    Kind,
    Manifest,
    key_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 1e-6


def scale(sim: Simulation, num: int, key: Key = DEMO) -> None:
    sim.cluster.edit(MODEL, key, lambda found: found["spec"].update(replicas=num))


def say(message: str, pod: Manifest) -> None:
    pod["status"].update(message=message)


def deliver(sim: Simulation) -> None:
    """All events that there are, now."""
    while sim.cluster.events:
        sim._deliver()


async def work(sim: Simulation) -> int:
    """Every item that is ready now; how many there were."""
    num = 0
    while (item := sim.controller.queue.take()) is not None:
        await sim.controller.process(item)
        num += 1
    return num


def set_replicas(sim: Simulation, key: Key = DEMO) -> list[int]:
    return [
        found["spec"]["replicas"]
        for found in sim.cluster.of_kind(STATEFULSET)
        if found["metadata"]["labels"][names.LABEL_MODEL] == key.name
    ]


def observed(sim: Simulation, key: Key = DEMO) -> int:
    return int(status(sim, key)["status"]["observedGeneration"])


async def passed(sim: Simulation, seconds: float) -> None:
    """Time goes by; what becomes due is done at its time."""
    end = sim.time_s + seconds
    while True:
        deliver(sim)
        await work(sim)
        wait_s = sim.controller.queue.wait_s()
        if wait_s is None or sim.time_s + wait_s > end:
            sim.time_s = end
            return
        sim.time_s += max(wait_s, SOON)


async def seconds_until(sim: Simulation, is_so: Callable[[], bool]) -> float:
    began = sim.time_s
    await run_until(sim, is_so)
    return sim.time_s - began


async def test_a_changed_spec_is_made_at_once_and_told_together_with_what_came_of_it() -> None:
    sim = Simulation()
    await created(sim)
    before = len(sim.cluster.writes)
    scale(sim, 3)
    deliver(sim)
    assert await work(sim) == 1
    assert set_replicas(sim) == [3]
    while sim.workloads.step():
        deliver(sim)
    assert await work(sim) == 0
    await passed(sim, ECHO_S + SOON)
    assert (observed(sim), status(sim)["status"]["readyReplicas"]) == (2, 3)
    writes = [" ".join(write.split()[:2]) for write in sim.cluster.writes[before:]]
    assert writes == ["apply StatefulSet", "status InferenceModel"]


async def test_a_dozen_echoes_give_one_reconcile() -> None:
    sim = Simulation()
    await created(sim)
    await passed(sim, 10)
    pod = key_of(replicas(sim)[0])
    for number in range(12):
        sim.cluster.edit(POD, pod, partial(say, str(number)))
        deliver(sim)
    assert await work(sim) == 0
    sim.time_s += ECHO_S
    assert await work(sim) == 1


@pytest.mark.parametrize("kind", CHILD_KINDS, ids=str)
async def test_a_deleted_child_is_back_after_one_wait(kind: Kind) -> None:
    sim = Simulation()
    await created(sim)
    found = [key for of, key in sim.cluster.objects if of == kind]
    assert found, f"the model has no {kind}"
    sim.cluster.vanish(kind, found[0])
    took_s = await seconds_until(sim, lambda: (kind, found[0]) in sim.cluster.objects)
    assert took_s <= ECHO_S + SOON


async def test_an_edited_child_is_mended_after_one_wait() -> None:
    sim = Simulation()
    await created(sim)
    key = key_of(sim.cluster.of_kind(STATEFULSET)[0])
    sim.cluster.edit(STATEFULSET, key, lambda found: found["spec"].update(replicas=7))
    assert await seconds_until(sim, lambda: set_replicas(sim) == [2]) <= ECHO_S + SOON


async def test_while_users_change_one_model_after_another_echoes_wait_longer() -> None:
    sim = Simulation()
    await created(sim)
    keys = [Key("default", f"m{number}") for number in range(10)]
    for key in keys:
        sim.cluster.put_new(MODEL, model(key.name))
    await sim.settle()
    await passed(sim, 10)
    for key in keys:
        scale(sim, 2, key)
        deliver(sim)
        await work(sim)
        assert set_replicas(sim, key) == [2]
        await passed(sim, ECHO_S / 10)
    told = [key for key in keys if observed(sim, key) == 2]
    assert told == []
    await passed(sim, BURST_ECHO_S)
    assert [observed(sim, key) for key in keys] == [2] * len(keys)


async def test_changes_without_a_pause_leave_no_status_untold() -> None:
    sim = Simulation()
    await created(sim)
    lags = []
    for number in range(100):
        scale(sim, 1 + number % 3)
        await passed(sim, ECHO_S / 4)
        lags.append(status(sim)["metadata"]["generation"] - observed(sim))
    assert max(lags) <= BURST_ECHO_S / (ECHO_S / 4)
    await sim.settle()
    assert observed(sim) == status(sim)["metadata"]["generation"]


async def test_a_new_model_s_first_status_tells_what_it_waits_for() -> None:
    sim = Simulation()
    sim.workloads.outcome = lambda: None
    await sim.controller.resync()
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model())
    await run_until(sim, lambda: "status" in status(sim))
    assert condition(status(sim), "ModelCached")["reason"] in ("FetchPending", "Fetching")
    assert sim.time_s <= ECHO_S + SOON


async def test_who_is_killed_before_it_told_tells_after_its_restart() -> None:
    sim = Simulation()
    await created(sim)
    scale(sim, 3)
    deliver(sim)
    await work(sim)
    assert observed(sim) == 1
    sim.controller = sim._new_controller()
    await sim.settle()
    assert observed(sim) == 2
