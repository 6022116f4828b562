"""Where every replica has a volume of its own: what the Job and the replica's pod are then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from support.controller_objects import MODEL_PATH, facts, model, offload_plan, pool
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.controller import pods
from terrace.controller.facts import KnownModel
from terrace.controller.files import Extras
from terrace.controller.jobs import fetch_jobs
from terrace.controller.kinds import JOB, STATEFULSET
from terrace.controller.manifests import Subject, model_children
from terrace.controller.model_volumes import EACH_REPLICAS, cache_claim
from terrace.controller.parse import parse_spec
from terrace.controller.replica_config import runtime_config
from terrace_runtime.contract import FetchFailure, FetchOutcome

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest

DIGEST = "a" * 64


def subject(spec: Manifest | None = None, **model_cache: Any) -> Subject:
    """A model with a secret in a pool whose replicas have volumes of their own."""
    own = pool()
    own["spec"]["modelCache"] = {"sharing": "PerReplica", "size": "5Gi", **model_cache}
    wanted = model()
    source = {"uri": "https://files.example/m.gguf", "sha256": DIGEST, "secretRef": {"name": "s"}}
    wanted["spec"] = wanted["spec"] | {"source": source} | (spec or {})
    wanted["metadata"] = {"namespace": "default", "uid": "u", **wanted["metadata"]}
    return Subject(
        wanted, parse_spec(ModelSpec, wanted), "p", parse_spec(PoolSpec, own), "image", "trust"
    )


def children(about: Subject) -> dict[str, Manifest]:
    plan = offload_plan()
    config = runtime_config(about, KnownModel(facts(), MODEL_PATH), Extras(), plan)
    every = model_children(about, about.pool.flavors[0], plan, config)
    return {kind.kind: child for kind, child in every}


def replica(about: Subject) -> Manifest:
    found: Manifest = children(about)[STATEFULSET.kind]["spec"]["template"]["spec"]
    return found


def told(container: Manifest) -> Manifest:
    found: Manifest = json.loads(container["env"][0]["value"])
    return found


def test_the_job_looks_and_has_no_volume_for_files() -> None:
    (job,) = fetch_jobs(subject(), subject().pool.flavors[0])
    pod = job["spec"]["template"]["spec"]
    assert told(pod["containers"][0])["look_only"] is True
    assert [volume["name"] for volume in pod["volumes"]] == ["secret", "tmp"]


def test_a_replica_fetches_to_the_volume_that_it_serves_from() -> None:
    pod = replica(subject())
    (fetching,) = pod["initContainers"]
    assert "look_only" not in told(fetching)
    assert told(fetching)["sha256"] == DIGEST
    (mine,) = (m for m in fetching["volumeMounts"] if m["mountPath"] == "/models")
    (served,) = (m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == "/models")
    assert served == {**mine, "readOnly": True}
    (template,) = children(subject())[STATEFULSET.kind]["spec"]["volumeClaimTemplates"]
    assert template["metadata"]["name"] == mine["name"]
    assert template["spec"]["resources"]["requests"]["storage"] == "5Gi"
    assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])


def test_only_what_fetches_sees_the_secret() -> None:
    pod = replica(subject())
    (secret,) = (volume["name"] for volume in pod["volumes"] if "secret" in volume)
    assert secret in {mount["name"] for mount in pod["initContainers"][0]["volumeMounts"]}
    assert secret not in {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}


def test_every_file_of_the_model_is_fetched_but_those_on_a_users_claim() -> None:
    spec = {
        "projector": {"uri": "hf://o/r:f16"},
        "draft": {"uri": "demo://draft"},
        "adapters": [
            {"name": "a", "source": {"uri": "hf://o/r/a.gguf"}},
            {"name": "b", "source": {"uri": "pvc://mine/b.gguf"}},
        ],
    }
    pod = replica(subject(spec))
    assert [told(each).get("role", "model") for each in pod["initContainers"]] == [
        "model",
        "projector",
        "draft",
        "adapter",
    ]
    assert len({each["name"] for each in pod["initContainers"]}) == len(pod["initContainers"])


def test_a_model_on_a_users_claim_alone_needs_no_volume_of_its_own() -> None:
    about = subject({"source": {"uri": "pvc://mine/m.gguf"}})
    assert "initContainers" not in replica(about)
    assert "volumeClaimTemplates" not in children(about)[STATEFULSET.kind]["spec"]
    assert "look_only" not in told(
        children(about)[JOB.kind]["spec"]["template"]["spec"]["containers"][0]
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("claimName", "c"), ("accessMode", "ReadWriteMany"), ("deleteUnusedAfterSeconds", 5)],
)
def test_what_needs_a_shared_claim_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=f"{field} has no meaning where sharing is PerRepl"):
        PoolSpec.model_validate(
            {"flavors": [{"name": "cpu"}], "modelCache": {"sharing": "PerReplica", field: value}}
        )


def test_no_claim_can_be_taken_for_the_replicas_own() -> None:
    assert cache_claim({"metadata": {"name": "p"}, "spec": subject_pool()}) == EACH_REPLICAS
    assert not EACH_REPLICAS[0].isalnum()


def subject_pool() -> Manifest:
    return {"modelCache": {"sharing": "PerReplica"}}


def pod_whose_fetch(state: Manifest, last: Manifest | None = None, **more: Any) -> Manifest:
    status = {"name": "fetch-1", "state": state, "lastState": last or {}, **more}
    return {"metadata": {"name": "m-cpu-0"}, "status": {"initContainerStatuses": [status]}}


def test_why_a_replica_cannot_fetch_is_read_from_its_own_words() -> None:
    failure = FetchFailure(reason="DiskFull", message="no room", permanent=False)
    ended = {"exitCode": 1, "message": FetchOutcome(failure=failure).model_dump_json()}
    for pod in (
        pod_whose_fetch({"terminated": ended}),
        pod_whose_fetch({"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": ended}),
        pod_whose_fetch({"running": {}}, {"terminated": ended}),
    ):
        assert pods.fetch_crash(pod) == "DiskFull: no room"
    killed = pod_whose_fetch({"terminated": {"exitCode": 137}})
    assert pods.fetch_crash(killed) == "exit code 137"


def test_a_fetch_that_went_well_in_the_end_is_no_trouble() -> None:
    done = {"terminated": {"exitCode": 0}}
    failed = {"terminated": {"exitCode": 1}}
    assert pods.fetch_crash(pod_whose_fetch(done, failed, ready=True)) is None
    assert pods.is_fetching(pod_whose_fetch({"running": {}}))
    assert not pods.is_fetching(pod_whose_fetch(done, ready=True))
