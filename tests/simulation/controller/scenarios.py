"""Lives of one model, and looking at what came of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from support.controller_objects import model, node, pool
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import (
    MODEL,
    NODE,
    POD,
    POOL,
    SERVICE,
    Manifest,
    labels_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.controller.simulation import Simulation

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


async def kept(sim: Simulation) -> None:
    """A disk tier that grows: the set's claim template cannot change, so the set is made anew."""
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model(replicas=2, offload={"maxDisk": "1Gi"}))
    await sim.settle()
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(offload={"maxDisk": "4Gi"}))
    await sim.settle()


async def extended(sim: Simulation) -> None:
    """A draft and adapters, of which one goes, one comes and one gets another file."""
    sim.cluster.put_new(POOL, pool())
    draft: Manifest = {"draft": {"uri": "demo://draft"}, "speculation": {"mode": "Draft"}}
    sim.cluster.put_new(MODEL, model(**draft, adapters=[adapter("a"), adapter("b")]))
    await sim.settle()
    kept = [adapter("a", "https://host/other.gguf"), adapter("c")]
    sim.cluster.edit(MODEL, DEMO, lambda m: m["spec"].update(adapters=kept))
    await sim.settle()


async def collected(sim: Simulation) -> None:
    """A model leaves, and its files go when their time is up."""
    cache = {"size": "1Gi", "deleteUnusedAfterSeconds": 100}
    sim.cluster.put_new(POOL, pool(modelCache=cache))
    sim.cluster.put_new(MODEL, model())
    sim.cluster.put_new(MODEL, model("other", adapters=[adapter("a")]))
    await sim.settle()
    sim.cluster.vanish(MODEL, Key("default", "other"))
    await sim.settle()


async def run_until(sim: Simulation, is_so: Callable[[], bool]) -> None:
    """Go on, although something is never done."""
    for _ in range(500):
        if is_so():
            return
        await sim._round()
    raise AssertionError("it never came to be")


def adapter(name: str, uri: str = "") -> Manifest:
    return {"name": name, "source": {"uri": uri or f"https://host/{name}.gguf"}}


async def scaled(sim: Simulation) -> None:
    """A second replica comes, which a budget protects, and goes again."""
    sim.cluster.put_new(POOL, pool())
    sim.cluster.put_new(MODEL, model())
    await sim.settle()
    for num in (2, 1):
        sim.cluster.edit(MODEL, DEMO, partial(update_spec, {"replicas": num}))
        await sim.settle()


SCENARIOS = {
    "collected": collected,
    "extended": extended,
    "kept": kept,
    "created": created,
    "changed": changed,
    "moved": moved,
    "scaled": scaled,
}


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
