"""Draft, adapters, secrets and unused files on a real control plane; pods are played."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.controller_api import eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_looks import settle
from cluster.controller_operator import SYSTEM
from support.controller_objects import fetched, fetched_for
from terrace.controller.kinds import CONFIGMAP, JOB, MODEL, POOL, SECRET, STATEFULSET
from terrace_runtime.contract import RUNTIME_CONFIG_FILE, FetchOutcome, FetchSpec, RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.controller_api import Manifest
    from cluster.controller_operator import Operator
    from cluster.controller_world import World


def adapter(name: str, **source: object) -> Manifest:
    return {"name": name, "source": {"uri": f"https://host/{name}.gguf", **source}}


def told(world: World) -> list[RuntimeConfig]:
    return [
        RuntimeConfig.model_validate_json(config["data"][RUNTIME_CONFIG_FILE])
        for config in world.api.items(CONFIGMAP, world.namespace)
        if RUNTIME_CONFIG_FILE in (config.get("data") or {})
    ]


def jobs(world: World) -> set[str]:
    return {job["metadata"]["name"] for job in world.api.items(JOB, world.namespace)}


def test_a_model_with_draft_and_adapter_becomes_ready_and_adapters_come_and_go(
    world: World, operator: Operator
) -> None:
    world.add_pool()
    draft: Manifest = {"draft": {"uri": "demo://draft"}, "speculation": {"mode": "Draft"}}
    world.add_model(**draft, adapters=[adapter("poet")])
    world.wait_ready()
    status = world.model()["status"]
    assert status["servedNames"] == ["demo", "poet"]
    assert status["draft"]["uri"] == "demo://draft"
    (config,) = told(world)
    assert config.speculation.draft_path == status["draft"]["path"]
    assert [a.digest for a in config.adapters] == [status["adapters"][0]["digest"]]
    before = world.uids()

    def slow(spec: FetchSpec) -> FetchOutcome | None:
        return None if "judge" in spec.uri else fetched_for(spec)

    world.kubelet.extra_outcome = slow
    world.patch(adapters=[adapter("poet"), adapter("judge")])
    said = world.wait("ModelCached", "False", "Fetching")
    assert said["message"] == "the fetch Job reads adapter judge"
    settle(world, operator)
    assert world.uids() == before
    world.wait("Available", "True")
    world.kubelet.extra_outcome = fetched_for
    eventually(lambda: before.isdisjoint(world.uids()), "replicas with both adapters")
    world.wait_ready()
    assert world.model()["status"]["servedNames"] == ["demo", "poet", "judge"]
    assert len(jobs(world)) == 4
    world.patch(adapters=[adapter("judge")])
    eventually(lambda: len(jobs(world)) == 3, "the Job of the adapter that left is gone")
    world.wait_ready()
    eventually(
        lambda: [[a.name for a in c.adapters] for c in told(world)] == [["judge"]],
        "replicas know one adapter",
    )
    assert operator.process.poll() is None


def test_a_fetch_waits_for_its_secret_and_says_so(world: World, operator: Operator) -> None:
    world.add_pool()
    source = {"uri": "hf://acme/chat:Q4_K_M", "secretRef": {"name": "hub"}}
    world.add_model(source=source)
    eventually(
        lambda: "Secret 'hub'" in world.wait("ModelCached", "False", "FetchPending")["message"],
        "the missing Secret is named",
    )
    secret = {"metadata": {"name": "hub", "namespace": world.namespace}}
    world.api.create(SECRET, secret | {"stringData": {"token": "t"}})
    world.wait_ready()
    for pod in world.pods():
        assert not [volume for volume in pod["spec"]["volumes"] if "secret" in volume]
    user = f"system:serviceaccount:{SYSTEM}:terrace-operator"
    reads = [
        event
        for event in world.cluster.audit_events()
        if (event.user, event.resource, event.namespace) == (user, "secrets", world.namespace)
    ]
    assert reads == []
    assert operator.process.poll() is None


def test_unused_files_are_deleted_by_a_job(world: World, operator: Operator) -> None:
    world.add_pool(modelCache={"size": "1Gi", "deleteUnusedAfterSeconds": 1})
    world.add_model()
    world.add_model("other", adapters=[adapter("poet")])
    world.wait_ready()
    world.wait_ready("other")
    (digest,) = [entry["digest"] for entry in world.model("other")["status"]["adapters"]]

    def files() -> set[str]:
        pool = world.api.get(POOL, world.namespace, "default") or {}
        return {entry["digest"] for entry in pool["status"].get("files") or ()}

    eventually(lambda: digest in files(), "the file is noted")
    world.api.delete(MODEL, world.namespace, "other")
    eventually(lambda: digest not in files(), "the file is gone", timeout_s=90)
    assert list(world.kubelet.pruned.values()) == [[digest]]
    eventually(lambda: "default-prune" not in jobs(world), "the Job is gone")
    assert operator.process.poll() is None


def test_a_file_in_an_image_is_mounted_by_job_and_replica_as_the_server_keeps_it(
    world: World, operator: Operator, at_least: Callable[[int], bool]
) -> None:
    if not at_least(35):
        pytest.skip("image volumes came with Kubernetes 1.35; test_older_kubernetes.py has more")
    world.add_pool()
    in_place = fetched().model_copy(update={"path": "/source/m.gguf"})
    world.kubelet.outcome = lambda _model: in_place
    world.add_model(source={"uri": "oci://registry.example/models/chat:1#m.gguf"})
    world.wait_ready()
    volumes = [
        volume
        for kind in (JOB, STATEFULSET)
        for child in world.api.items(kind, world.namespace)
        for volume in child["spec"]["template"]["spec"]["volumes"]
        if "image" in volume
    ]
    wanted = {"reference": "registry.example/models/chat:1", "pullPolicy": "IfNotPresent"}
    assert [volume["image"] for volume in volumes] == [wanted, wanted]
    before = world.uids()
    settle(world, operator)
    assert world.uids() == before
