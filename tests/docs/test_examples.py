"""Every shipped example on a real control plane: accepted, placed, and asking for its devices."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from cluster.controller_api import eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_world import World
from support.clusters import running_cluster
from support.controller_objects import fetched_for, projector_facts
from support.example_nodes import DEVICES
from support.pages import ROOT
from terrace.api import names
from terrace.cli.model_file import read_facts
from terrace.controller.kinds import STATEFULSET
from terrace_runtime.contract import FetchOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.controller_kubelet import Kubelet
    from cluster.controller_operator import Operator
    from terrace.local.cluster import LocalCluster

pytestmark = pytest.mark.timeout(400)
EXAMPLES: Final = sorted({path.parent for path in (ROOT / "examples").glob("[0-9]*/*.yaml")})


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """API server and controllers; nodes are played, so that they can have devices."""
    with running_cluster("docs-examples", tmp_path_factory) as cluster:
        yield cluster


def objects_in(folder: Path) -> list[dict[str, Any]]:
    texts = [file.read_text() for file in sorted(folder.glob("*.yaml"))]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def named(objects: list[dict[str, Any]], kind: str) -> list[str]:
    return [each["metadata"]["name"] for each in objects if each["kind"] == kind]


def expected(pool: str) -> tuple[dict[str, str], str]:
    """Devices of a replica and the suffix of its image, on a cluster that has all of them."""
    devices = DEVICES.get("nvidia" if pool == "devices" else pool)
    return (devices.wanted, devices.image_suffix) if devices else ({}, "")


def test_every_example_is_placed_and_asks_for_the_devices_of_its_vendor(
    world: World, operator: Operator, kubelet: Kubelet
) -> None:
    facts = read_facts("demo://chat")
    kubelet.outcome = lambda _model: FetchOutcome(path="/models/m.gguf", facts=facts)
    projector = projector_facts(output_length=facts.embedding_length)
    beside = FetchOutcome(path="/models/p.gguf", projector=projector)
    kubelet.extra_outcome = lambda spec: beside if spec.role == "projector" else fetched_for(spec)
    for pool, devices in DEVICES.items():
        resources = {devices.resource: devices.count}
        kubelet.add_node(
            f"node-{pool}", cpu="64", memory="256Gi", labels=devices.labels, devices=resources
        )
    # Some have names in common, so each gets a namespace of its own.
    places = {folder: place_of(world, folder) for folder in EXAMPLES}
    seen = set()
    for folder, place in places.items():
        objects = objects_in(folder)
        (pool,) = named(objects, names.POOL_KIND)
        wanted, suffix = expected(pool)
        for model in named(objects, names.MODEL_KIND):
            place.wait("Placed", "True", name=model, timeout_s=90)
            container = container_of(place, model)
            limits = container["resources"]["limits"]
            assert {key: limits[key] for key in limits if "/" in key} == wanted, model
            assert container["image"] == f"terrace/runtime:0.1.0{suffix}", model
            seen.add(pool)
    assert set(DEVICES) <= seen
    assert operator.process.poll() is None


def place_of(world: World, folder: Path) -> World:
    """A namespace with that example applied."""
    namespace = f"example-{folder.name}"
    world.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    world.cluster.kubectl("apply", "-n", namespace, "-f", str(folder))
    return World(world.cluster, world.api, world.kubelet, world.operators, namespace)


def container_of(place: World, model: str) -> dict[str, Any]:
    """The runtime in the template of the model's one StatefulSet."""
    own = f"{names.LABEL_MODEL}={model}"
    (made,) = eventually(
        lambda: place.api.items(STATEFULSET, place.namespace, own),
        f"{model}: a StatefulSet",
        timeout_s=60,
    )
    found: dict[str, Any] = made["spec"]["template"]["spec"]["containers"][0]
    return found


def test_every_example_passes_a_server_side_dry_run(world: World) -> None:
    for folder in EXAMPLES:
        dry = (
            "apply",
            "--server-side",
            "--dry-run=server",
            "-n",
            world.namespace,
            "-f",
            str(folder),
        )
        said = world.cluster.kubectl(*dry)
        assert said.count("(server dry run)") == len(objects_in(folder)), folder
