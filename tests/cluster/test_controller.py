"""The operator on a real control plane: real storage, scheduling, Jobs, sets, garbage collection.

Pods are played (``controller_kubelet``); what runs in them is the end-to-end tests' business.
"""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import time

import pytest

from cluster.controller_api import eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_looks import get, metric, settle
from cluster.controller_operator import SYSTEM, Operator
from cluster.controller_world import MANAGED, World
from support.controller_objects import condition, fetched
from terrace.api import names
from terrace.controller.kinds import (
    CHILD_KINDS,
    CLAIM,
    CONFIGMAP,
    MODEL,
    POOL,
    SECRET,
    SERVICE,
    STATEFULSET,
)
from terrace_runtime.contract import RUNTIME_CONFIG_FILE, RuntimeConfig


def test_a_model_becomes_ready(world: World, operator: Operator) -> None:
    world.add_pool()
    created = world.add_model(context={"length": 512}, servedNames=["chat"])
    world.wait_ready()
    live = world.model()
    status = live["status"]
    assert live["metadata"]["generation"] == created["metadata"]["generation"]
    assert live["spec"] == created["spec"]
    assert status["readyReplicas"] == status["replicas"] == 1
    assert status["servedNames"] == ["chat"]
    assert status["placement"] == {"flavor": "cpu", "statefulSet": "demo-cpu"}
    assert (status["plan"]["context"], status["plan"]["parallel"]) == (512, 4)
    assert status["model"]["digest"] == fetched().facts.digest  # type: ignore[union-attr]
    assert status["url"] == "http://gateway:8080/v1"
    assert {c["type"] for c in status["conditions"]} == {
        "Ready",
        "Reconciling",
        "Stalled",
        "ModelCached",
        "Placed",
        "Available",
    }
    assert all(c["observedGeneration"] == 1 for c in status["conditions"])
    config = world.api.items(CONFIGMAP, world.namespace, MANAGED)[0]["data"][RUNTIME_CONFIG_FILE]
    told = RuntimeConfig.model_validate_json(config)
    assert (told.context_tokens, told.model_path) == (512, fetched().path)
    assert told.trust_key
    assert "lease_" not in operator.log.read_text()
    assert get(operator, "/readyz")[0] == 200
    assert (
        b'terrace_operator_reconciles_total{kind="InferenceModel",outcome="success"}'
        in get(operator, "/metrics")[1]
    )


def test_a_changed_model_is_rolled_out_and_a_scaled_one_is_not(
    world: World, operator: Operator
) -> None:
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    first = world.uids()
    args = ("-n", world.namespace, "im/demo", "--replicas=3")
    world.cluster.kubectl("scale", *args)
    eventually(lambda: world.model()["status"].get("readyReplicas") == 3, "three replicas")
    assert first < world.uids()
    before = world.uids()
    world.patch(context={"parallel": 2})
    world.wait_ready()
    eventually(lambda: before.isdisjoint(world.uids()), "all replaced")
    world.wait_ready()
    assert world.model()["status"]["plan"]["parallel"] == 2
    assert operator.process.poll() is None


@pytest.mark.parametrize("change", ["deleted", "edited"])
def test_drift_of_every_child_is_mended(world: World, operator: Operator, change: str) -> None:
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    before = world.children()
    assert {kind for kind, _ in before} == set(CHILD_KINDS)
    for kind, name in before:
        if change == "deleted":
            # The claim is in use by pods and stays; the pods' finished Job goes with it.
            if kind != CLAIM:
                world.api.delete(kind, world.namespace, name, propagationPolicy="Background")
        else:
            world.api.patch(
                kind, world.namespace, name, {"metadata": {"labels": {names.PART_OF: "x"}}}
            )

    def is_mended() -> bool:
        live = world.children()
        return live.keys() == before.keys() and all(
            (live[entry]["metadata"]["uid"] != before[entry]["metadata"]["uid"])
            == (change == "deleted" and entry[0] != CLAIM)
            and live[entry]["metadata"]["labels"] == before[entry]["metadata"]["labels"]
            for entry in before
        )

    eventually(is_mended, f"every {change} child is mended")
    world.wait_ready()
    assert operator.process.poll() is None


def test_an_edited_set_and_service_get_their_fields_back(world: World, operator: Operator) -> None:
    world.add_pool()
    world.add_model()
    world.wait_ready()
    pods = world.uids()
    container = {"name": "runtime", "args": ["sleep"], "image": "other"}
    template = {"spec": {"containers": [container]}}
    world.api.patch(
        STATEFULSET, world.namespace, "demo-cpu", {"spec": {"template": template, "replicas": 4}}
    )
    ports = {"spec": {"ports": [{"name": "http", "port": 9999}]}}
    world.api.patch(SERVICE, world.namespace, "demo", ports)

    def is_mended() -> bool:
        live = world.children()
        if (SERVICE, "demo") not in live:
            return False  # It is made anew: the two ports of one name cannot be mended in place.
        spec = live[STATEFULSET, "demo-cpu"]["spec"]
        mended = spec["template"]["spec"]["containers"][0]
        port = live[SERVICE, "demo"]["spec"]["ports"]
        return bool(
            spec["replicas"] == 1
            and mended["args"][0] == "serve"
            and mended["image"] == "terrace/runtime:0.1.0"
            and [entry["port"] for entry in port] == [8000]
        )

    eventually(is_mended, "fields are back")
    eventually(lambda: world.uids() == pods, "the first pod alone is left")
    assert operator.process.poll() is None


@pytest.mark.timeout(400)
def test_fifty_models_at_once_become_ready(world: World, operator: Operator) -> None:
    world.add_pool()
    started_at = time.monotonic()
    for number in range(50):
        world.add_model(f"m{number}", context={"length": 128, "parallel": 1})

    def num_ready() -> int:
        models = world.api.items(MODEL, world.namespace)
        return sum(condition(entry, "Ready").get("status") == "True" for entry in models)

    eventually(lambda: num_ready() == 50, "50 ready models", timeout_s=300, step_s=1)
    print(f"50 models ready after {time.monotonic() - started_at:.1f} s")  # noqa: T201
    assert (
        metric(operator, 'terrace_operator_reconciles_total{kind="InferenceModel",outcome="error"}')
        == 0
    )


def test_kopf_itself_writes_nothing_and_no_role_is_missing(
    world: World, operator: Operator
) -> None:
    world.add_pool()
    world.add_model()
    world.wait_ready()
    settle(world, operator)
    user = f"system:serviceaccount:{SYSTEM}:terrace-operator"
    events = [event for event in world.cluster.audit_events() if event.user == user]
    assert [event for event in events if event.code == 403] == []
    assert [e for e in events if e.is_write and "terrace-operator/" not in e.user_agent] == []
    for kind, name in ((MODEL, "demo"), (POOL, "default")):
        metadata = (world.api.get(kind, world.namespace, name) or {})["metadata"]
        assert "finalizers" not in metadata
        assert "annotations" not in metadata
    assert world.api.get(SECRET, SYSTEM, "terrace-trust")


def test_a_deleted_model_takes_its_children_with_it(world: World, operator: Operator) -> None:
    """Stands last: the garbage collector learns of a new kind only every 30 seconds."""
    world.add_pool()
    world.add_model()
    world.wait_ready()
    world.api.delete(MODEL, world.namespace, "demo")
    eventually(
        lambda: set(world.children()) == {(CLAIM, "default-models")}, "children gone", timeout_s=120
    )
    eventually(lambda: not world.pods() and not world.pods("fetch"), "pods gone")
    world.api.delete(POOL, world.namespace, "default")
    eventually(lambda: not world.children(), "the pool's claim is gone")
    assert operator.process.poll() is None
