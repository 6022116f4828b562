"""What users are told about what cannot work."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cluster.controller_api import ApiError, Manifest, eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_kubelet import crashed
from cluster.controller_looks import settle
from cluster.controller_world import SMALL, World
from support.controller_objects import condition, fetched, not_fetched
from terrace.api import names
from terrace.controller.kinds import (
    JOB,
    MODEL,
    POOL,
    SERVICE,
    Kind,
)

if TYPE_CHECKING:
    from cluster.controller_operator import Operator


CRD = Kind(
    "apiextensions.k8s.io/v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)


def test_the_older_of_two_models_serves_the_name(world: World, operator: Operator) -> None:
    world.add_pool()
    world.add_model("first", servedNames=["chat"])
    time.sleep(1.1)  # Creation times have whole seconds, and age decides here.
    world.add_model("second", servedNames=["chat", "other"])
    stalled = world.wait("Stalled", "True", "NameConflict", name="second")
    assert f"'chat' is served by {world.namespace}/first" in stalled["message"]
    world.wait_ready("second")
    assert world.model("second")["status"]["servedNames"] == ["other"]
    world.api.delete(MODEL, world.namespace, "first")
    world.wait("Stalled", "False", name="second")
    assert world.model("second")["status"]["servedNames"] == ["chat", "other"]
    assert operator.process.poll() is None


def test_a_missing_pool_is_said_and_replicas_go_on(world: World, operator: Operator) -> None:
    world.add_model()
    world.wait("Placed", "False", "PoolNotFound")
    world.add_pool()
    world.wait_ready()
    pods = world.uids()
    world.api.delete(POOL, world.namespace, "default")
    world.wait("Placed", "False", "PoolNotFound")
    settle(world, operator)
    assert world.uids() == pods
    assert condition(world.model(), "Available")["status"] == "True"


def test_a_stored_spec_that_does_not_parse_stalls(world: World, operator: Operator) -> None:
    name = f"{names.MODEL_PLURAL}.{names.GROUP}"
    world.add_pool()
    schema = world.api.get(CRD, "", name)["spec"]["versions"]  # type: ignore[index]
    try:
        world.api.patch(CRD, "", name, {"spec": {"versions": [_relaxed(schema[0])]}})

        def is_stored() -> bool:
            world.api.delete(MODEL, world.namespace, "odd")
            try:
                stored = world.add_model("odd", colour="blue")
            except ApiError:
                return False
            return "colour" in stored["spec"]

        eventually(is_stored, "the relaxed schema is served", step_s=0.3)
        stalled = world.wait("Stalled", "True", "InvalidSpec", name="odd")
        assert "spec.colour" in stalled["message"]
        world.add_model()
        world.wait_ready()
        assert operator.process.poll() is None
    finally:
        world.api.patch(CRD, "", name, {"spec": {"versions": schema}})


def test_a_bad_model_file_stalls_without_pod_churn(world: World, operator: Operator) -> None:
    world.kubelet.outcome = lambda _model: not_fetched(
        "InvalidModel", "no GGUF magic at byte 0", permanent=True
    )
    world.add_pool()
    world.add_model()
    cached = world.wait("ModelCached", "False", "InvalidModel")
    assert "no GGUF magic at byte 0" in cached["message"]
    world.wait("Stalled", "True", "InvalidModel")
    eventually(
        lambda: (world.children()[JOB, "demo-fetch"].get("status") or {}).get("failed") == 1,
        "the Job has failed at once",
    )
    settle(world, operator)
    assert len(world.pods("fetch")) == 1
    assert world.pods() == []


def test_a_model_too_large_says_how_many_bytes_are_missing(
    world: World, operator: Operator
) -> None:
    world.kubelet.outcome = lambda _model: fetched(weights=4 * 10**12)
    world.add_pool()
    world.add_model()
    placed = world.wait("Placed", "False", "NoNodeFits")
    assert "TiB" in placed["message"]
    assert world.pods() == []
    assert operator.process.poll() is None


def test_pod_problems_are_shown(world: World, operator: Operator) -> None:
    world.kubelet.serve = lambda pod: crashed(pod, 13, "llama.cpp: cannot load the model")
    world.add_pool()
    world.add_model()
    available = world.wait("Available", "False", "Crashing")
    assert "exit code 13: llama.cpp: cannot load the model" in available["message"]
    world.kubelet.serve = lambda _pod: None
    world.wait_ready()
    flavors = [{**SMALL[0], "tolerations": []}]
    world.api.patch(POOL, world.namespace, "default", {"spec": {"flavors": flavors}})
    assert operator.process.poll() is None


def test_a_service_of_somebody_else_is_left_alone(world: World, operator: Operator) -> None:
    world.api.create(
        SERVICE,
        {
            "metadata": {"name": "demo", "namespace": world.namespace},
            "spec": {"ports": [{"port": 80}], "selector": {"app": "mine"}},
        },
    )
    world.add_pool()
    world.add_model()
    stalled = world.wait("Stalled", "True", "ForeignObject")
    assert f"Service {world.namespace}/demo exists" in stalled["message"]
    live: Manifest = world.api.get(SERVICE, world.namespace, "demo") or {}
    assert live["spec"]["selector"] == {"app": "mine"}
    assert operator.process.poll() is None


def _relaxed(version: Manifest) -> Manifest:
    """A version of the CRD as if it had been stored before any rule existed."""
    spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    schema = {
        "type": "object",
        "properties": {"spec": spec, "status": properties["status"]},
    }
    return {**version, "schema": {"openAPIV3Schema": schema}}
