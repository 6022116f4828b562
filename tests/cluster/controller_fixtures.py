"""Fixtures of the tests of the controller: one played node for a module, a namespace for a test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from cluster.controller_api import Api
from cluster.controller_kubelet import Kubelet
from cluster.controller_operator import SYSTEM, Operator, Operators
from cluster.controller_world import World
from support.controller_objects import fetched, fetched_for
from terrace.controller.kinds import (
    LEASE,
    MODEL,
    POOL,
    SERVICE,
)
from terrace.controller.lease import LEASE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.local.cluster import LocalCluster

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def api(control_plane: LocalCluster) -> Iterator[Api]:
    client = Api(control_plane.server, control_plane.folder.pki)
    yield client
    client.close()


@pytest.fixture(scope="module")
def operators(
    control_plane: LocalCluster, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    group = Operators(control_plane, api, tmp_path_factory.mktemp("operators"))
    yield group
    group.stop_all()


@pytest.fixture(scope="module")
def kubelet(api: Api, operators: Operators) -> Iterator[Kubelet]:
    with Kubelet(api) as played:
        played.add_node("node-a", cpu="64", memory="64Gi")
        yield played


@pytest.fixture
def world(
    control_plane: LocalCluster, api: Api, kubelet: Kubelet, operators: Operators
) -> Iterator[World]:
    namespace = f"t{next(_NUMBERS)}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    yield World(control_plane, api, kubelet, operators, namespace)
    operators.stop_all()
    api.delete(LEASE, SYSTEM, LEASE_NAME)  # Nobody could release it; the next one need not wait.
    kubelet.outcome, kubelet.serve = lambda _model: fetched(), lambda _pod: None
    kubelet.extra_outcome = fetched_for
    api.request("DELETE", f"/api/v1/namespaces/{namespace}")
    # Other tests' operators must not see them, nor see them go when the namespace does at last.
    for kind in (MODEL, POOL, SERVICE):
        for left in api.items(kind, namespace):
            api.delete(kind, namespace, left["metadata"]["name"])


@pytest.fixture
def operator(world: World) -> Operator:
    return world.operators.start()
