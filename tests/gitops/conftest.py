"""A control plane with the kinds of Terrace for this folder, and what was recorded on it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.controller_api import Api
from cluster.controller_kubelet import Kubelet
from cluster.controller_operator import Operator, Operators
from cluster.controller_world import World
from gitops.git import Git
from gitops.programs import BUILD_S, evaluator, foreign_crds
from gitops.recording import Recorder, stop
from support.clusters import running_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.controller_api import Manifest
    from terrace.local.cluster import LocalCluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs a Go program waits for its build.

    Recording comes first: it does without the garbage collector, which learns of new kinds only
    every 30 s. Tests of other folders, which are in the list as well, stay as they are.
    """
    places = [place for place, item in enumerate(items) if HERE in item.path.parents]
    ours = sorted((items[place] for place in places), key=lambda item: not _is_about_records(item))
    for place, item in zip(places, ours, strict=True):
        item.add_marker(pytest.mark.timeout(BUILD_S))
        items[place] = item


def _is_about_records(item: pytest.Item) -> bool:
    return "recorded" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_cluster("gitops", tmp_path_factory) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def api(control_plane: LocalCluster) -> Iterator[Api]:
    client = Api(control_plane.server, control_plane.folder.pki)
    yield client
    client.close()


@pytest.fixture(scope="session")
def operators(
    control_plane: LocalCluster, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    group = Operators(control_plane, api, tmp_path_factory.mktemp("operators"))
    yield group
    group.stop_all()


@pytest.fixture(scope="session")
def kubelet(api: Api, operators: Operators) -> Iterator[Kubelet]:
    with Kubelet(api) as played:
        played.add_node("node-a", cpu="64", memory="64Gi")
        yield played


@pytest.fixture(scope="session")
def recorded(
    control_plane: LocalCluster, api: Api, kubelet: Kubelet, operators: Operators
) -> dict[str, Manifest]:
    """State -> the object in it."""
    evaluator()  # First, because clusters and operators would wait for the build.
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": "states"}})
    return Recorder(World(control_plane, api, kubelet, operators, "states")).record()


@pytest.fixture(scope="session")
def all_kinds(control_plane: LocalCluster, operators: Operators) -> None:
    """Ours, which came with the operator, and those of the projects that we write samples for."""
    folder = str(foreign_crds())
    control_plane.kubectl("apply", "--server-side", "-f", folder)
    control_plane.kubectl(
        "wait", "--for=condition=Established", "-f", folder, "--timeout=90s", timeout_s=120
    )


@pytest.fixture(scope="module")
def operator(operators: Operators, kubelet: Kubelet) -> Iterator[Operator]:
    """One for a module's tests; gone afterwards, because states are recorded without it, too."""
    started = operators.start(f"operator-{uuid.uuid4().hex[:8]}")
    yield started
    stop(started)


@pytest.fixture
def git(
    api: Api, control_plane: LocalCluster, all_kinds: None, operator: Operator
) -> Iterator[Git]:
    """What a test applies; it is gone afterwards."""
    made = Git(api, control_plane)
    yield made
    made.clear()
