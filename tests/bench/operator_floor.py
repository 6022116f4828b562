"""What the cluster itself takes for a change, with a bare client in the operator's place.

Owns: the floor of the case `change`, one by one and back to back. Does not own: the operator's own
figures (``operator_change.py``). The client does nothing but see that an object was patched and
apply another one. One by one both are ConfigMaps; back to back the other one is a StatefulSet,
whose new replica the scheduler, the controllers and kwok then write about on the same cores, and
what is patched is a ConfigMap or, as users do, a model.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.operator_requests import APPLY, MERGE
from bench.operator_world import OURS, model_name
from terrace.controller.kinds import CONFIGMAP, MODEL, STATEFULSET

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.operator_requests import Client, Manifest
    from bench.operator_world import World

NAMESPACE = "default"
APPLY_QUERY = "?fieldManager=bench&force=true"
ANNOTATION = "terrace.bench/n"
ONE_PAUSE_S = 0.1
WATCH_OPENS_S = 1.0
"""A watch tells what happens from when it is open."""


class Seen:
    """When a watch showed a value of an object, by this process' clock."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], asyncio.Future[float]] = defaultdict(
            asyncio.get_running_loop().create_future
        )

    async def watch(self, client: Client, path: str, value_of: Callable[[Manifest], Any]) -> None:
        """Follow ``path`` until cancelled."""
        async for event in client.watch(path):
            found = event["object"]
            at = self._at[found["metadata"]["name"], str(value_of(found))]
            if not at.done():
                at.set_result(time.perf_counter())

    async def wait(self, name: str, value: str) -> float:
        """When it was shown."""
        async with asyncio.timeout(60):
            return await asyncio.shield(self._at[name, value])


async def floor_one_by_one(world: World, changes: int) -> list[float]:
    """Seconds from the patch of a ConfigMap to the event of the ConfigMap that follows from it."""
    admin, path = world.admin, CONFIGMAP.path(NAMESPACE)
    for name in ("asked", "made"):
        await admin.send("POST", path, {"metadata": {"name": name}, "data": {"n": "0"}})
    seen, waits = Seen(), []
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(seen.watch(admin, path, _n))
        await asyncio.sleep(WATCH_OPENS_S)
        for index in range(1, changes + 1):
            word, began = str(index), time.perf_counter()
            await admin.send("PATCH", f"{path}/asked", {"data": {"n": word}}, MERGE)
            await seen.wait("asked", word)
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}}
            body |= {"data": {"n": word}}
            await admin.send("PATCH", f"{path}/made{APPLY_QUERY}", body, APPLY)
            waits.append(await seen.wait("made", word) - began)
            await asyncio.sleep(ONE_PAUSE_S)
        watching.cancel()
    return waits


class Asked(NamedTuple):
    """What is patched back to back."""

    path: str
    names: list[str]
    body: Callable[[str], Manifest]
    value_of: Callable[[Manifest], str]


async def floor_back_to_back(world: World, bursts: int, burst: int) -> list[float]:
    """The same for ``bursts`` times ``burst`` patches; what follows is a StatefulSet that grows."""
    names = [f"floor-{index}" for index in range(burst)]
    for name in names:
        body = {"metadata": {"name": name}, "data": {"n": "1"}}
        await world.admin.send("POST", CONFIGMAP.path(NAMESPACE), body)
    asked = Asked(CONFIGMAP.path(NAMESPACE), names, lambda n: {"data": {"n": n}}, _n)
    return await _back_to_back(world, bursts, asked)


async def floor_of_models(world: World, bursts: int, burst: int) -> list[float]:
    """The same with models in place of the ConfigMaps: their patch costs the server more.

    They get an annotation, for which the operator writes nothing.
    """
    names = [model_name(index) for index in range(burst)]
    asked = Asked(MODEL.path(OURS), names, lambda n: _annotations({ANNOTATION: n}), _annotated)
    return await _back_to_back(world, bursts, asked)


async def _back_to_back(world: World, bursts: int, asked: Asked) -> list[float]:
    admin, sets = world.admin, STATEFULSET.path(NAMESPACE)
    for name in asked.names:
        await admin.send("PATCH", f"{sets}/{name}{APPLY_QUERY}", _set(name, 1), APPLY)
    await world.settled(1.0)
    wanted, made, waits = Seen(), Seen(), []

    async def follow(name: str, number: int, began: float) -> float:
        await wanted.wait(name, str(number))
        await admin.send("PATCH", f"{sets}/{name}{APPLY_QUERY}", _set(name, number), APPLY)
        return await made.wait(name, str(number)) - began

    async with asyncio.TaskGroup() as group:
        watches = [
            group.create_task(wanted.watch(admin, asked.path, asked.value_of)),
            group.create_task(made.watch(admin, sets, _replicas)),
        ]
        await asyncio.sleep(WATCH_OPENS_S)
        for number in range(2, bursts + 2):
            follows = []
            for name in asked.names:
                began = time.perf_counter()
                body = asked.body(str(number))
                await admin.send("PATCH", f"{asked.path}/{name}", body, MERGE)
                follows.append(group.create_task(follow(name, number, began)))
            waits += await asyncio.gather(*follows)
            await world.settled(1.0)
        for watch in watches:
            watch.cancel()
    return waits


def _n(manifest: Manifest) -> str:
    return str(manifest.get("data", {}).get("n", ""))


def _annotations(found: Manifest) -> Manifest:
    return {"metadata": {"annotations": found}}


def _annotated(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(ANNOTATION, ""))


def _replicas(manifest: Manifest) -> int:
    return int(manifest["spec"]["replicas"])


def _set(name: str, replicas: int) -> Manifest:
    labels = {"floor": name}
    container = {"name": "runtime", "image": "none", "resources": {"requests": {"cpu": "200m"}}}
    return {
        "apiVersion": STATEFULSET.api_version,
        "kind": STATEFULSET.kind,
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
