"""The operator on a real control plane: real storage, scheduling, Jobs, sets, garbage collection.

Pods are played (``controller_kubelet``); what runs in them is the end-to-end tests' business.
"""

from __future__ import annotations

import http.client
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from cluster.controller_api import Api, ApiError, Manifest, eventually
from cluster.controller_kubelet import Kubelet, crashed
from cluster.controller_operator import SYSTEM, Operator, Operators
from cluster.controller_proxy import Proxy
from cluster.controller_world import MANAGED, SMALL, World
from support.controller_objects import condition, fetched, not_fetched
from terrace.api import names
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    LEASE,
    MODEL,
    POOL,
    SECRET,
    SERVICE,
    STATEFULSET,
    Kind,
)
from terrace.controller.lease import LEASE_NAME
from terrace.local.processes import is_alive
from terrace_runtime.contract import RUNTIME_CONFIG_FILE, RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from terrace.local.cluster import LocalCluster

CRD = Kind(
    "apiextensions.k8s.io/v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)
FAST_LEASE: dict[str, Any] = {"lease_s": 3, "renew_s": 2, "retry_s": 0.3}
CHILD_KINDS = (CLAIM, JOB, CONFIGMAP, SERVICE, STATEFULSET, BUDGET)


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
    control_plane: LocalCluster, api: Api, kubelet: Kubelet, operators: Operators, request: Any
) -> Iterator[World]:
    namespace = f"t{abs(hash(request.node.name)) % 10**8}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    yield World(control_plane, api, kubelet, operators, namespace)
    operators.stop_all()
    kubelet.outcome, kubelet.serve = lambda _model: fetched(), lambda _pod: None
    api.request("DELETE", f"/api/v1/namespaces/{namespace}")
    for kind in (MODEL, POOL):  # Other tests' operators must not see them.
        for left in api.items(kind, namespace):
            api.delete(kind, namespace, left["metadata"]["name"])


@pytest.fixture
def operator(world: World) -> Operator:
    return world.operators.start()


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
    world.add_model()
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


STAGES: dict[str, Callable[[World], Any]] = {
    "first sight": lambda w: w.model().get("status", {}).get("conditions"),
    "the Job exists": lambda w: (JOB, "demo-fetch") in w.children(),
    "the file is fetched": lambda w: any(
        p["status"].get("phase") == "Succeeded" for p in w.pods("fetch")
    ),
    "the config exists": lambda w: any(kind == CONFIGMAP for kind, _ in w.children()),
    "the set exists": lambda w: (STATEFULSET, "demo-cpu") in w.children(),
    "a pod exists": lambda w: w.pods(),
    "available": lambda w: condition(w.model(), "Available").get("status") == "True",
}


def test_a_killed_operator_is_taken_over_at_every_stage(world: World) -> None:
    """kill -9 after each stage is seen; two models' worth of stages in one life."""
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2)
    for stage, is_reached in STAGES.items():
        eventually(partial(is_reached, world), stage, step_s=0.005)
        operator.kill()
        operator = world.operators.start()
    world.wait_ready()
    kinds = sorted(str(kind) for kind, _ in world.children())
    assert kinds == sorted(str(kind) for kind in CHILD_KINDS)
    assert len(world.pods()) == 2
    assert len(world.pods("fetch")) == 1


def test_one_of_two_operators_leads_and_the_other_takes_over(world: World) -> None:
    first = world.operators.start("operator-a", **FAST_LEASE)
    eventually(lambda: holder(world) == "operator-a", "the first one leads")
    second = world.operators.start("operator-b", **FAST_LEASE)
    eventually(lambda: _answers(second), "the standby serves its probes")
    eventually(lambda: get(second, "/readyz")[0] == 200, "the standby is ready")
    world.add_pool()
    world.add_model()
    world.wait_ready()
    assert metric(first, "terrace_operator_leader") == 1
    assert metric(second, "terrace_operator_leader") == 0
    assert metric(second, "terrace_operator_queue_adds") == 0
    first.kill()
    eventually(lambda: holder(world) == "operator-b", "takeover after the lease ran out")
    world.patch(replicas=2)
    eventually(lambda: world.model()["status"].get("readyReplicas") == 2, "the second one works")
    third = world.operators.start("operator-c", **FAST_LEASE)
    eventually(lambda: _answers(third), "the third one waits")
    released_at = time.monotonic()
    assert second.terminate() == 0
    eventually(lambda: holder(world) == "operator-c", "takeover of a released lease", step_s=0.02)
    assert time.monotonic() - released_at < FAST_LEASE["lease_s"]


def test_an_operator_that_loses_its_lease_ends(world: World) -> None:
    operator = world.operators.start("operator-a", **FAST_LEASE)
    eventually(lambda: holder(world) == "operator-a", "it leads")
    eventually(lambda: get(operator, "/readyz")[0] == 200, "it works")
    world.api.patch(LEASE, SYSTEM, LEASE_NAME, {"spec": {"holderIdentity": "somebody-else"}})
    assert operator.process.wait(timeout=10) == 3
    assert "leadership lost" in operator.log.read_text()


def test_a_deletion_while_the_watch_is_cut_is_found(world: World) -> None:
    """The API server restarts meanwhile, so the watch's version is gone: 410."""
    host, port = world.cluster.server.removeprefix("https://").rsplit(":", 1)
    with Proxy(host, int(port)) as proxy:
        operator = world.operators.start(through=proxy.port, resync_s=4, leader_election="false")
        world.add_pool()
        world.add_model()
        world.wait_ready()
        proxy.cut()
        before = world.children()
        world.api.delete(SERVICE, world.namespace, "demo")
        record = world.cluster.folder.load().processes["kube-apiserver"]  # type: ignore[union-attr]
        os.kill(record.pid, 9)
        eventually(lambda: not is_alive(record), "the API server is gone")
        world.cluster.up()
        proxy.restore()
        eventually(lambda: world.children().keys() == before.keys(), "the Service is back")
        world.wait_ready()
        assert operator.process.poll() is None
        assert metric(operator, 'terrace_operator_missed_deletions_total{resource="services"}') == 1


def test_a_new_node_and_an_operator_upgrade_restart_nothing(world: World) -> None:
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    pods = world.uids()
    world.kubelet.add_node("node-big", cpu="128", memory="512Gi")
    operator.terminate()
    upgraded = "terrace/runtime:0.2.0"
    operator = world.operators.start(runtime_image=upgraded)

    def image() -> str:
        spec = world.children()[STATEFULSET, "demo-cpu"]["spec"]["template"]["spec"]
        return str(spec["containers"][0]["image"])

    eventually(lambda: image() == upgraded, "the set has the new image")
    settle(world, operator)
    assert world.uids() == pods
    world.wait_ready()


@pytest.mark.timeout(240)
def test_fifty_models_at_once_become_ready(world: World, operator: Operator) -> None:
    world.add_pool()
    started_at = time.monotonic()
    for number in range(50):
        world.add_model(f"m{number}", context={"length": 128, "parallel": 1})

    def num_ready() -> int:
        models = world.api.items(MODEL, world.namespace)
        return sum(condition(entry, "Ready").get("status") == "True" for entry in models)

    eventually(lambda: num_ready() == 50, "50 ready models", timeout_s=180, step_s=1)
    print(f"50 models ready after {time.monotonic() - started_at:.1f} s")  # noqa: T201
    assert (
        metric(operator, 'terrace_operator_reconciles_total{kind="InferenceModel",outcome="error"}')
        == 0
    )


def test_an_idle_operator_writes_nothing_but_its_lease(world: World) -> None:
    operator = world.operators.start(resync_s=2, report_s=2)
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    settle(world, operator)
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1))
    lists = metric(
        operator, 'terrace_operator_api_calls_total{code="200",resource="pods",verb="list"}'
    )
    time.sleep(12)  # The fact under test is that nothing happens for a while.
    after = metric(
        operator, 'terrace_operator_api_calls_total{code="200",resource="pods",verb="list"}'
    )
    assert after >= lists + 4
    user = f"system:serviceaccount:{SYSTEM}:terrace-operator"
    writes = [
        (event.verb, event.resource, event.name)
        for event in world.cluster.audit_events()
        if event.is_write
        and event.user == user
        and event.received >= begin
        and event.namespace in (world.namespace, SYSTEM)  # Others may still be going away.
    ]
    assert writes
    assert {resource for _, resource, _ in writes} == {"leases"}


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


def test_a_deleted_model_takes_its_children_with_it(world: World, operator: Operator) -> None:
    """Stands last: the garbage collector learns of a new kind only every 30 seconds."""
    world.add_pool()
    world.add_model()
    world.wait_ready()
    world.api.delete(MODEL, world.namespace, "demo")
    eventually(
        lambda: set(world.children()) == {(CLAIM, "default-models")}, "children gone", timeout_s=60
    )
    eventually(lambda: not world.pods() and not world.pods("fetch"), "pods gone")
    world.api.delete(POOL, world.namespace, "default")
    eventually(lambda: not world.children(), "the pool's claim is gone")
    assert operator.process.poll() is None


def settle(world: World, operator: Operator) -> None:
    """Wait until the operator has nothing queued and the objects have been still for a second."""

    def versions() -> tuple[str, ...]:
        return tuple(
            child["metadata"]["resourceVersion"] for child in world.children().values()
        ) + tuple(m["metadata"]["resourceVersion"] for m in world.api.items(MODEL, world.namespace))

    last, since = versions(), time.monotonic()
    deadline = time.monotonic() + 20
    while time.monotonic() - since < 1.0:
        assert time.monotonic() < deadline, "objects keep changing"
        time.sleep(0.1)
        now = versions()
        if now != last or metric(operator, "terrace_operator_queue_in_flight"):
            last, since = now, time.monotonic()


def holder(world: World) -> str:
    lease = world.api.get(LEASE, SYSTEM, LEASE_NAME) or {}
    return str((lease.get("spec") or {}).get("holderIdentity", ""))


def get(operator: Operator, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", operator.port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def metric(operator: Operator, name: str) -> float:
    """A sample; 0 where it was never counted."""
    for line in get(operator, "/metrics")[1].decode().splitlines():
        if line.rsplit(" ", 1)[0] == name:
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def _answers(operator: Operator) -> bool:
    try:
        return get(operator, "/healthz")[0] == 200
    except OSError:
        return False


def _relaxed(version: Manifest) -> Manifest:
    """A version of the CRD as if it had been stored before any rule existed."""
    spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    schema = {
        "type": "object",
        "properties": {"spec": spec, "status": properties["status"]},
    }
    return {**version, "schema": {"openAPIV3Schema": schema}}
