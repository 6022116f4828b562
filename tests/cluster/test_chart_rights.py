"""Least privilege by the API server's own record: what the operator asks for is what it may do."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import pytest

from chart.rendering import rights
from cluster.controller_api import ApiError, eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_operator import SYSTEM
from support.controller_objects import fetched_for
from terrace.controller.kinds import BUDGET, JOB, MODEL, SERVICE, Kind, uid_of
from terrace.controller.rbac import CLUSTER_RULES, NAMESPACE_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.controller_api import Api, Manifest
    from cluster.controller_operator import Operator
    from cluster.controller_world import World
    from terrace.local.audit import AuditEvent
    from terrace_runtime.contract import FetchOutcome, FetchSpec

USER = f"system:serviceaccount:{SYSTEM}:terrace-operator"
STORAGE_CLASS = Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False)
FORBIDDEN = 403
Used = tuple[str, str]
"""Resource with its subresource, and verb."""

NOT_REQUESTED = {
    ("inferencemodels/finalizers", "update"): "owner references that block deletion are checked "
    "for it by the admission plugin OwnerReferencesPermissionEnforcement, where that is on",
    ("inferencepools/finalizers", "update"): "as above",
}
"""Rights that no request names, and why the operator has them nevertheless."""


@pytest.fixture
def elastic(api: Api) -> Iterator[str]:
    """A class of volumes that may grow."""
    name = "rights-elastic"
    storage_class = {
        "apiVersion": STORAGE_CLASS.api_version,
        "kind": STORAGE_CLASS.kind,
        "metadata": {"name": name},
        "provisioner": "terrace.dev/local",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
    try:
        api.create(STORAGE_CLASS, storage_class)
    except ApiError as error:
        if error.status != 409:
            raise
    yield name
    api.delete(STORAGE_CLASS, "", name)


def test_the_operator_asks_for_all_it_may_do_and_for_nothing_else(
    world: World, operator: Operator, elastic: str
) -> None:
    live_a_life(world, elastic)
    operator.terminate()  # A watch is in the record once it has ended.
    granted = {(r, verb) for _, r, _, verb in rights([*CLUSTER_RULES, *NAMESPACE_RULES])}

    def asked() -> list[AuditEvent]:
        return [e for e in world.cluster.audit_events() if e.user == USER and e.resource[0] != "/"]

    def unused() -> list[Used]:
        return sorted(granted - used(asked()) - set(NOT_REQUESTED))

    with contextlib.suppress(AssertionError):  # Then the next line says which.
        # The record is written a moment after the answer.
        eventually(lambda: not unused(), "every right is used")
    assert not unused(), "\n".join(map(str, unused()))
    events = asked()
    assert [e for e in events if e.code == FORBIDDEN] == []
    assert used(events) - granted == set()
    assert used(events) & set(NOT_REQUESTED) == set(), "give no reason for what is requested"
    names = {e.name for e in events if e.resource in ("secrets", "leases") and e.verb != "create"}
    assert names == {"terrace-trust", "terrace-operator"}


def used(events: list[AuditEvent]) -> set[Used]:
    """A server-side apply that made its object, answered with 201, was checked for create too."""
    requested = {(e.resource, e.verb) for e in events if e.code != FORBIDDEN}
    applied = {(e.resource, "create") for e in events if (e.verb, e.code) == ("patch", 201)}
    return requested | applied


def live_a_life(world: World, storage_class: str) -> None:
    """Have everything happen that the operator has a right for."""

    def disk(size: str) -> Manifest:
        return {"maxDisk": size, "disk": {"storageClassName": storage_class}}

    def slow(spec: FetchSpec) -> FetchOutcome | None:
        return None if "judge" in spec.uri else fetched_for(spec)

    def adapter(name: str) -> Manifest:
        return {"name": name, "source": {"uri": f"https://host/{name}.gguf"}}

    world.kubelet.extra_outcome = slow
    world.add_pool(modelCache={"size": "1Gi", "deleteUnusedAfterSeconds": 1})
    world.add_model(adapters=[adapter("poet")], offload=disk("1Gi"), replicas=2)
    world.wait_ready()
    before = world.uids()
    world.patch(adapters=[adapter("poet"), adapter("judge")])  # Its progress is read from a log.
    world.wait("ModelCached", "False", "Fetching")
    logs = ("pods/log", "get")
    eventually(
        lambda: any((e.resource, e.verb) == logs for e in world.cluster.audit_events()),
        "the log of a running fetch is read",
    )
    world.kubelet.extra_outcome = fetched_for
    eventually(lambda: before.isdisjoint(world.uids()), "replicas with both adapters")
    world.wait_ready()
    world.patch(adapters=[])  # Two Jobs go, and the ConfigMap of the old plan.
    eventually(lambda: len(world.api.items(JOB, world.namespace)) == 1, "the Jobs are gone")
    world.wait_ready()
    before = world.uids()
    world.patch(offload=disk("2Gi"))  # The claim grows, and the set is made anew.
    eventually(lambda: before.isdisjoint(world.uids()), "replicas with a larger disk")
    world.wait_ready()
    spoil(world)
    world.add_model("other")
    world.wait_ready("other")
    world.api.delete(MODEL, world.namespace, "other")


def spoil(world: World) -> None:
    """Edits that our fields cannot be merged into: what loses nothing is deleted and made anew."""
    edits: dict[Kind, Manifest] = {
        SERVICE: {"ports": [{"name": "http", "port": 9999}]},
        BUDGET: {"maxUnavailable": None, "minAvailable": 1},
    }
    for kind, spec in edits.items():
        uid = uid_of(world.api.patch(kind, world.namespace, "demo", {"spec": spec}))
        eventually(partial(is_another, world, kind, uid), f"the {kind.kind} is made anew")


def is_another(world: World, kind: Kind, uid: str) -> bool:
    found = world.api.get(kind, world.namespace, "demo")
    return found is not None and uid_of(found) != uid
