"""Model files in images: mounted by the kubelet into Job and replicas, and used in place."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.controller_objects import MODEL_PATH, facts, model, offload_plan, pool, projector_facts
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.controller.facts import (
    Fetch,
    KnownModel,
    KnownProjector,
    projector_status,
    read_fetch,
)
from terrace.controller.files import Extras, Projector, extra_files
from terrace.controller.jobs import fetch_jobs
from terrace.controller.kinds import STATEFULSET, Manifest
from terrace.controller.manifests import Subject, model_children
from terrace.controller.model_volumes import claim_of, replica_path, replica_volumes
from terrace.controller.parse import parse_spec
from terrace.controller.replica_config import runtime_config
from terrace.controller.unused import used_files
from terrace_runtime.contract import RUNTIME_CONFIG_FILE

IMAGE = "registry.example:5000/models/chat:1.0"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OTHER = "registry.example/models/draft@sha256:" + "a" * 64


def subject(uri: str, sharing: str | None = None, **spec: Any) -> Subject:
    wanted, own = model(), pool()
    source = {"uri": uri, "secretRef": {"name": "pull"}}
    wanted["spec"] = wanted["spec"] | {"source": source, **spec}
    wanted["metadata"] = {"namespace": "default", "uid": "u", **wanted["metadata"]}
    own["spec"]["modelCache"] = {"sharing": sharing} if sharing else {}
    return Subject(
        wanted, parse_spec(ModelSpec, wanted), "p", parse_spec(PoolSpec, own), "image", "trust"
    )


def job_pod(about: Subject) -> Manifest:
    found: Manifest = fetch_jobs(about, about.pool.flavors[0])[0]["spec"]["template"]["spec"]
    return found


def replica(about: Subject, path: str = "/source/m.gguf") -> Manifest:
    plan = offload_plan()
    config = runtime_config(about, KnownModel(facts(), path), Extras(), plan)
    children = dict(model_children(about, about.pool.flavors[0], plan, config))
    found: Manifest = children[STATEFULSET]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("sharing", [None, "PerReplica"])
def test_job_and_replica_mount_the_image_and_no_claim(sharing: str | None) -> None:
    about = subject(f"oci://{IMAGE}#gguf/m.gguf", sharing)
    for pod in (job_pod(about), replica(about)):
        (volume,) = (v for v in pod["volumes"] if v["name"] == "model")
        assert volume["image"] == {"reference": IMAGE, "pullPolicy": "IfNotPresent"}
        assert not any("persistentVolumeClaim" in v for v in pod["volumes"])
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "model")
        assert mount == {"name": "model", "mountPath": "/source", "readOnly": True}
        assert "initContainers" not in pod


def test_the_secret_is_the_kubelets_and_nobody_mounts_it() -> None:
    about = subject(f"oci://{IMAGE}#m.gguf")
    for pod in (job_pod(about), replica(about)):
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        assert not any("secret" in volume for volume in pod["volumes"])
    told = json.loads(job_pod(about)["containers"][0]["env"][0]["value"])
    assert "secret_dir" not in told


def test_the_secret_of_an_artifact_that_is_downloaded_is_the_jobs() -> None:
    pod = job_pod(subject(f"oci://{IMAGE}"))
    assert "imagePullSecrets" not in pod
    assert any("secret" in volume for volume in pod["volumes"])


def test_a_draft_in_another_image_is_mounted_beside() -> None:
    path = replica_path("/source/d.gguf", f"oci://{OTHER}#d.gguf", f"oci://{IMAGE}#m.gguf")
    paths = ["/source/m.gguf", path]
    first, second = replica_volumes(
        paths, f"oci://{IMAGE}#m.gguf", "p", subject("demo://chat").pool
    )
    assert (first.claim, first.mount_path) == (f"image {IMAGE}", "/source")
    assert second.claim == f"image {OTHER}"
    assert path.startswith(f"{second.mount_path}/")
    assert ":" not in second.mount_path


def test_a_tag_that_changes_means_another_file() -> None:
    about = subject(f"oci://{IMAGE}#m.gguf")
    (job,) = fetch_jobs(about, about.pool.flavors[0])
    known = KnownModel(facts(), "/source/m.gguf", f"image {IMAGE}")
    same = read_fetch(job, [], known, lambda _: None, NOW, 60, f"image {IMAGE}")
    assert same.known == known
    other = read_fetch(job, [], known, lambda _: None, NOW, 60, f"image {IMAGE}0")
    assert other.known is None


def test_the_config_names_the_file_where_it_is_mounted() -> None:
    about = subject(f"oci://{IMAGE}#gguf/m.gguf")
    plan = offload_plan()
    config = runtime_config(about, KnownModel(facts(), "/source/gguf/m.gguf"), Extras(), plan)
    children = {k.kind: c for k, c in model_children(about, about.pool.flavors[0], plan, config)}
    told = json.loads(children["ConfigMap"]["data"][RUNTIME_CONFIG_FILE])
    assert told["model_path"] == "/source/gguf/m.gguf" != MODEL_PATH


@given(
    st.from_regex(
        r"[a-z0-9.]{1,20}(:[0-9]{1,5})?/[a-z0-9/]{1,20}(:[a-z0-9.]{1,9})?", fullmatch=True
    )
)
def test_the_image_of_any_reference_is_found_again_in_its_path(reference: str) -> None:
    uri = f"oci://{reference}#d.gguf"
    path = replica_path("/source/d.gguf", uri, "demo://chat")
    (volume,) = replica_volumes([path], "demo://chat", "p", subject("demo://chat").pool)
    assert volume.claim == claim_of(uri) == f"image {reference}"


def test_a_projector_in_an_image_of_its_own_is_told_where_it_is_mounted() -> None:
    about = subject(f"oci://{IMAGE}#m.gguf", projector={"uri": f"oci://{OTHER}#p.gguf"})
    known = KnownProjector(projector_facts(), "/source/p.gguf", f"image {OTHER}")
    file = extra_files("demo", about.spec)[0]
    extras = Extras(projector=Projector(file, Fetch(known=known)))
    plan = offload_plan()
    config = runtime_config(about, KnownModel(facts(), "/source/m.gguf"), extras, plan)
    children = dict(model_children(about, about.pool.flavors[0], plan, config))
    pod = children[STATEFULSET]["spec"]["template"]["spec"]
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    folder, _, name = config.projector_path.rpartition("/")
    assert name == "p.gguf"
    assert folder in mounts
    assert config.projector_digest == known.facts.digest
    assert {v["image"]["reference"] for v in pod["volumes"] if "image" in v} == {IMAGE, OTHER}


def test_a_projector_counts_as_used_while_its_model_names_it() -> None:
    known = KnownProjector(projector_facts(), "/models/blobs/p.gguf")
    status = projector_status(known).model_dump(mode="json", by_alias=True)
    named = model(projector={"uri": "https://host/p.gguf", "sha256": "c" * 64})
    used = used_files(named | {"status": {"projector": status}})
    assert used == {"c" * 64: 0, known.facts.digest: known.facts.file_bytes}
