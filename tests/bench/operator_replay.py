"""The writes of an operator, out of the audit log, and a bare client that makes them again.

Owns: which of the operator's writes count, their order, the same bodies for other objects. Does not
own: the operator's run. The bare client knows everything beforehand, looks at nothing, watches
nothing: what it needs is what the API server needs for these writes and no less.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.operator_requests import APPLY, JSON
from bench.operator_world import IN_FLIGHT, USER, in_parallel, model_name
from terrace.api import names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.operator_requests import Asked, Client
    from bench.operator_world import World

WORKERS = 16
"""As many as the operator has."""
CHILDREN = ("jobs", "services", "configmaps", "statefulsets")
"""Of a model with one replica: more than one have a budget too."""


@dataclass(frozen=True)
class Run:
    """What was done in a namespace, by the server's clock."""

    began: float
    """The first model came."""
    ended: float
    """The last child's first write was answered."""
    writes: list[Asked]
    """The operator's, in that time."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def run_of(log: Iterable[Asked], namespace: str, num_models: int) -> Run:
    """Read the operator's run; fails when a child is missing."""
    asked = [each for each in log if each.namespace == namespace and each.code < 300]
    users = [each for each in asked if each.user != USER]
    mine = [each for each in asked if each.user == USER]
    began = min(each.received for each in users if (each.resource, each.verb) == _MODEL_CREATED)
    made: dict[tuple[str, str], float] = {}
    for each in mine:
        if each.resource in CHILDREN:
            made.setdefault((each.resource, each.name), each.answered)
    missing = [kind for kind in CHILDREN if sum(found == kind for found, _ in made) < num_models]
    if missing:
        raise AssertionError(f"not all {', '.join(missing)} were applied")
    ended = max(made.values())
    return Run(began, ended, [each for each in mine if each.received <= ended])


_MODEL_CREATED = ("inferencemodels", "create")


async def replay(world: World, client: Client, run: Run, source: str, target: str) -> float:
    """The same models and writes in another namespace; seconds from first to last."""
    num_models, began = world.sizes.models, time.perf_counter()
    groups = _by_owner(run.writes)
    ready: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    for name in groups.keys() - {model_name(index) for index in range(num_models)}:
        ready.put_nowait((name, ""))  # Pools and whatever is nobody's.

    async def create(index: int) -> None:
        uid = await world.add_model(target, index)
        ready.put_nowait((model_name(index), uid))

    async def work() -> None:
        while (item := await ready.get())[0]:
            name, uid = item
            for each in groups.get(name, ()):
                await _write(client, each, source, target, uid)

    users = in_parallel([partial(create, index) for index in range(num_models)], IN_FLIGHT)
    workers = [asyncio.create_task(work()) for _ in range(WORKERS)]
    await users
    for _ in workers:
        ready.put_nowait(("", ""))
    await asyncio.gather(*workers)
    return time.perf_counter() - began


def _by_owner(writes: Iterable[Asked]) -> dict[str, list[Asked]]:
    """The writes about one model, or about one pool, in order."""
    groups: dict[str, list[Asked]] = defaultdict(list)
    for each in sorted(writes, key=lambda one: one.received):
        body = each.body or {}
        labels = (body.get("metadata") or {}).get("labels") or {}
        about = (body.get("involvedObject") or {}).get("name")
        groups[about or labels.get(names.LABEL_MODEL) or each.name].append(each)
    return groups


async def _write(client: Client, asked: Asked, source: str, target: str, uid: str) -> None:
    body = dict(asked.body or {})
    metadata = dict(body.get("metadata") or {})
    metadata["namespace"] = target
    metadata.pop("uid", None)
    if references := metadata.get("ownerReferences"):
        metadata["ownerReferences"] = [{**each, "uid": uid} for each in references]
    if asked.resource.startswith("inferencemodels"):
        metadata["uid"] = uid
    body["metadata"] = metadata
    if "involvedObject" in body:
        body["involvedObject"] = {**body["involvedObject"], "namespace": target, "uid": uid}
    path = asked.uri.replace(f"/namespaces/{source}/", f"/namespaces/{target}/")
    if asked.verb == "create":
        await client.send("POST", path, body, JSON)
    elif asked.verb == "patch":
        await client.send("PATCH", path, body, APPLY)
    else:
        raise AssertionError(f"the operator made a {asked.verb} of {asked.uri} while applying")


def counted(writes: Iterable[Asked]) -> dict[str, int]:
    """How many of each kind."""
    counts: dict[str, int] = defaultdict(int)
    for each in writes:
        counts[each.resource] += 1
    return dict(counts)
