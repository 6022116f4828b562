"""What the shipped examples become, held by golden files (``make golden`` rewrites them)."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.controller_objects import (
    MODEL_PATH,
    facts,
    model,
    node,
    offload_plan,
    pool,
    projector_facts,
)
from support.example_nodes import example_node
from terrace.api import names
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.controller.facts import KnownModel, KnownProjector, model_status, projector_status
from terrace.controller.files import Extras, read_extras
from terrace.controller.jobs import fetch_jobs
from terrace.controller.kinds import CONFIGMAP, JOB, STATEFULSET, Kind, Manifest
from terrace.controller.manifests import (
    Subject,
    model_cache_claim,
    model_children,
    plan_label,
    stateful_set,
)
from terrace.controller.parse import parse_spec
from terrace.controller.replica_config import runtime_config
from terrace.planner.inputs import Cluster, ModelInputs
from terrace.planner.nodes import node_facts
from terrace.planner.placement import Placement, place
from terrace.planner.plan import KvVolume, OffloadPlan
from terrace_runtime.contract import RUNTIME_CONFIG_FILE, FetchSpec, RuntimeConfig

EXAMPLES = Path(__file__).parents[3] / "examples"
GOLDEN = Path(__file__).parent / "golden"
PLAN = offload_plan(inputs="0" * 64)
KNOWN = KnownModel(facts(), MODEL_PATH)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stored(manifest: Manifest, uid: str) -> Manifest:
    metadata = {"namespace": "default", **manifest["metadata"], "uid": uid}
    return {**manifest, "metadata": metadata}


def subject(model_object: Manifest, pool_object: Manifest) -> Subject:
    return Subject(
        stored(model_object, "model-uid"),
        parse_spec(ModelSpec, model_object),
        pool_object["metadata"]["name"],
        parse_spec(PoolSpec, pool_object),
        "terrace/runtime:0.1.0",
        "trust-key",
    )


def children(
    model_object: Manifest,
    pool_object: Manifest,
    plan: OffloadPlan = PLAN,
    known: KnownModel = KNOWN,
) -> dict[Kind, Manifest]:
    about = subject(model_object, pool_object)
    config = runtime_config(about, known, Extras(), plan)
    return dict(model_children(about, about.pool.flavors[0], plan, config))


def planned(model_object: Manifest, pool_object: Manifest) -> OffloadPlan:
    """The planner's own plan on a node of 8 CPUs and 16 GiB, and one with devices for who asks."""
    about = subject(model_object, pool_object)
    devices = example_node(pool_object["metadata"]["name"])
    nodes = [node_facts(each) for each in (node(), devices or gpu_node())]
    projector = projector_facts() if about.spec.projector else None
    inputs = ModelInputs(facts(), about.spec, projector=projector)
    placed = place(inputs, about.pool, Cluster(tuple(nodes)))
    assert isinstance(placed, Placement), placed
    return placed.plan


def gpu_node() -> Manifest:
    """A node that only flavors with devices tolerate."""
    labels = {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.memory": "81920",
    }
    taints = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    bare = node("node-gpu", labels=labels, devices={"nvidia.com/gpu": 4})
    return bare | {"spec": {"taints": taints}}


def pod_of(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]["spec"]
    return found


def everything(model_object: Manifest, pool_object: Manifest) -> list[Manifest]:
    """All children of a model whose files are in place."""
    about = subject(model_object, pool_object)
    extras = extras_of(about)
    config = runtime_config(about, KNOWN, extras, planned(model_object, pool_object))
    plan = planned(model_object, pool_object)
    return [child for _, child in model_children(about, about.pool.flavors[0], plan, config)]


def extras_of(about: Subject) -> Extras:
    """Projector, draft and adapters, each fetched."""
    draft = about.spec.draft and {"path": "/models/draft.gguf", "uri": about.spec.draft.uri}
    adapters = [
        {
            "name": adapter.name,
            "path": fetched_path(adapter.source.uri),
            "digest": f"{number:064x}",
            "fileBytes": 1000,
            "uri": adapter.source.uri,
        }
        for number, adapter in enumerate(about.spec.adapters)
    ]
    stored = {"draft": draft and {**draft_facts(), **draft}, "adapters": adapters}
    if about.spec.projector is not None:
        known = KnownProjector(projector_facts(), "/models/projector.gguf")
        status = projector_status(known, about.spec.projector.uri)
        stored["projector"] = status.model_dump(by_alias=True)
    return read_extras({**about.model, "status": stored}, about.spec, {}, [], NOW, 60)


def draft_facts() -> Manifest:
    return model_status(KnownModel(facts(digest="e" * 64), "")).model_dump(by_alias=True)


def fetched_path(uri: str) -> str:
    return f"/source/{Path(uri).name}" if uri.startswith("pvc:") else f"/models/{Path(uri).name}"


@pytest.mark.parametrize(
    "example", sorted({path.parent.name for path in EXAMPLES.glob("[0-9]*/*.yaml")})
)
def test_golden_manifests_of_the_examples(example: str) -> None:
    objects = [
        document
        for file in sorted((EXAMPLES / example).glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if document
    ]
    pools = {o["metadata"]["name"]: o for o in objects if o["kind"] == names.POOL_KIND}
    made = [
        model_cache_claim(stored(found, "pool-uid"), parse_spec(PoolSpec, found))
        for found in pools.values()
    ]
    for found in objects:
        if found["kind"] == names.MODEL_KIND:
            theirs = pools[found["spec"]["poolRef"]["name"]]
            made += everything(found, theirs)
    text = yaml.safe_dump_all(made, sort_keys=False, width=100)
    golden = GOLDEN / f"{example}.yaml"
    if os.environ.get("TERRACE_GOLDEN") == "write":
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("kind", [JOB, STATEFULSET], ids=str)
def test_pods_satisfy_the_restricted_standard(kind: Kind) -> None:
    pod = pod_of(children(model(), pool())[kind])
    assert pod["automountServiceAccountToken"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert {key for volume in pod["volumes"] for key in volume} - {"name"} <= allowed
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_every_child_is_owned_labelled_and_named_after_its_model() -> None:
    for kind, child in children(model("chat"), pool()).items():
        metadata = child["metadata"]
        owner = metadata["ownerReferences"]
        assert [(o["kind"], o["uid"], o["controller"]) for o in owner] == [
            (names.MODEL_KIND, "model-uid", True)
        ], kind
        assert metadata["labels"][names.MANAGED_BY] == names.MANAGED_BY_VALUE
        assert metadata["labels"][names.LABEL_MODEL] == "chat"
        assert metadata["name"].startswith("chat")


def test_the_selector_of_the_set_holds_nothing_that_changes() -> None:
    selector = children(model(), pool())[STATEFULSET]["spec"]["selector"]["matchLabels"]
    assert names.LABEL_PLAN not in selector
    assert names.LABEL_POOL not in selector
    labels = children(model(), pool())[STATEFULSET]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()


def test_a_user_s_claim_is_mounted_in_place_and_never_written() -> None:
    source = {"uri": "pvc://files/models/a.gguf"}
    known = KnownModel(facts(), "/source/models/a.gguf")
    for kind, child in children(model(source=source), pool(), known=known).items():
        if kind in (JOB, STATEFULSET):
            pod = pod_of(child)
            volume = {"claimName": "files", "readOnly": True}
            assert {"name": "model", "persistentVolumeClaim": volume} in pod["volumes"]
            mounts = pod["containers"][0]["volumeMounts"]
            assert {"name": "model", "mountPath": "/source", "readOnly": True} in mounts


def test_the_fetch_job_is_told_source_checksum_and_networks() -> None:
    source = {"uri": "https://host/a.gguf", "sha256": "a" * 64}
    job = children(model(source=source), pool(access={"allowedNetworks": ["10.0.0.0/8"]}))[JOB]
    env = {e["name"]: e["value"] for e in pod_of(job)["containers"][0]["env"]}
    assert FetchSpec.model_validate_json(env["TERRACE_FETCH"]) == FetchSpec(
        uri="https://host/a.gguf", sha256="a" * 64, allowed_networks=("10.0.0.0/8",)
    )


def job_of(role: str, **spec: Any) -> tuple[FetchSpec, Manifest]:
    """What the Job of that file is told, and its pod."""
    pool_spec = spec.pop("pool", {})
    about = subject(model(**spec), pool(**pool_spec))
    for job in fetch_jobs(about, about.pool.flavors[0]):
        env = {e["name"]: e["value"] for e in pod_of(job)["containers"][0]["env"]}
        told = FetchSpec.model_validate_json(env["TERRACE_FETCH"])
        if told.role == role:
            return told, pod_of(job)
    raise AssertionError(role)


MIRRORS = {
    "huggingFaceEndpoint": "https://hub",
    "s3Endpoint": "https://s3",
    "s3Region": "r",
    "ociEndpoint": "https://oci",
}


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("hf://a/b", {"hf_endpoint": "https://hub"}),
        ("s3://a/b", {"s3_endpoint": "https://s3", "s3_region": "r"}),
        ("oci://a/b", {"oci_endpoint": "https://oci"}),
        ("https://a/b", {}),
        ("demo://chat", {}),
    ],
)
def test_a_fetch_is_told_of_the_mirrors_of_its_kind_alone(uri: str, wanted: Manifest) -> None:
    told, _ = job_of("model", source={"uri": uri}, pool={"sources": MIRRORS})
    assert told == FetchSpec(uri=uri, **wanted)


def test_a_secret_is_mounted_into_its_own_fetch_and_nowhere_else() -> None:
    secret = {"uri": "https://a/b.gguf", "secretRef": {"name": "key"}}
    plain = {"uri": "https://a/c.gguf"}
    spec: dict[str, Any] = {
        "source": plain,
        "draft": secret,
        "speculation": {"mode": "Draft"},
        "adapters": [{"name": "a", "source": plain}],
    }
    told, pod = job_of("draft", **spec)
    assert told.secret_dir == "/secret"
    mount = {"name": "secret", "mountPath": "/secret", "readOnly": True}
    assert mount in pod["containers"][0]["volumeMounts"]
    volume = {"name": "secret", "secret": {"secretName": "key", "defaultMode": 0o440}}
    assert volume in pod["volumes"]
    for role in ("model", "adapter"):
        told, pod = job_of(role, **spec)
        assert told.secret_dir == ""
        assert "secret" not in {v["name"] for v in pod["volumes"]}
    about = subject(model(**spec), pool())
    (served,) = [c for c in everything(model(**spec), pool()) if c["kind"] == STATEFULSET.kind]
    assert not [volume for volume in pod_of(served)["volumes"] if "secret" in volume]
    assert len(fetch_jobs(about, about.pool.flavors[0])) == 3


def test_files_of_several_claims_are_seen_at_paths_of_their_own() -> None:
    """Model and one adapter on one claim, another adapter on a second, the draft in the cache."""
    spec: dict[str, Any] = {
        "source": {"uri": "pvc://files/a.gguf"},
        "draft": {"uri": "demo://draft"},
        "speculation": {"mode": "Draft"},
        "adapters": [
            {"name": "near", "source": {"uri": "pvc://files/near.gguf"}},
            {"name": "far", "source": {"uri": "pvc://other/far.gguf"}, "scale": 0.5},
        ],
    }
    about = subject(model(**spec), pool())
    known = KnownModel(facts(), "/source/a.gguf")
    config = runtime_config(about, known, extras_of(about), PLAN)
    assert config.speculation.draft_path == "/models/draft.gguf"
    assert [(a.name, a.path, a.scale) for a in config.adapters] == [
        ("near", "/source/near.gguf", 1.0),
        ("far", "/sources/other/far.gguf", 0.5),
    ]
    pod = pod_of(stateful_set(about, PLAN, config, "config"))
    claims = {
        v["name"]: v["persistentVolumeClaim"]
        for v in pod["volumes"]
        if "persistentVolumeClaim" in v
    }
    at = {
        mount["mountPath"]: claims[mount["name"]]
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] in claims
    }
    assert at == {
        "/source": {"claimName": "files", "readOnly": True},
        "/models": {"claimName": "default-models"},
        "/sources/other": {"claimName": "other", "readOnly": True},
    }
    mounts = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims]
    assert all(mount["readOnly"] for mount in mounts)


def test_a_claim_that_is_cache_and_source_at_once_is_one_volume() -> None:
    cache: dict[str, Any] = {"modelCache": {"claimName": "files"}}
    spec: dict[str, Any] = {
        "source": {"uri": "demo://chat"},
        "adapters": [{"name": "a", "source": {"uri": "pvc://files/a.gguf"}}],
    }
    about = subject(model(**spec), pool(**cache))
    config = runtime_config(about, KNOWN, extras_of(about), PLAN)
    pod = pod_of(stateful_set(about, PLAN, config, "config"))
    claims = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"name": "model", "persistentVolumeClaim": {"claimName": "files"}}]
    assert {
        m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "model"
    } == {
        "/models",
        "/sources/files",
    }


@pytest.mark.parametrize(
    ("spec", "pool_spec", "field", "value"),
    [
        ({"servedNames": ["a", "b"]}, {}, "served_names", ("a", "b")),
        ({"limits": {"maxTokens": 7}}, {}, "max_tokens", 7),
        ({}, {"queue": {"maxRequests": 3}}, "max_waiting", 3),
        ({}, {"streams": {"readerTokensPerSecond": 0}}, "reader_pace", 0),
        ({}, {"streams": {"intervalMilliseconds": 50}}, "stream_interval_s", 0.05),
        ({}, {}, "reader_pace", 5),
        ({}, {"drainTimeoutSeconds": 9}, "drain_timeout_s", 9.0),
        ({}, {}, "served_names", ("demo",)),
        ({}, {}, "trust_key", "trust-key"),
        ({}, {}, "context_tokens", 2048),
        ({}, {}, "model_path", MODEL_PATH),
        ({}, {}, "plan_digest", PLAN.digest),
    ],
)
def test_the_replica_is_told(
    spec: Manifest, pool_spec: Manifest, field: str, value: object
) -> None:
    config = runtime_config(subject(model(**spec), pool(**pool_spec)), KNOWN, Extras(), PLAN)
    assert getattr(config, field) == value
    assert RuntimeConfig.model_validate_json(config.model_dump_json()) == config


def test_devices_find_the_likeliest_tokens_where_the_flavor_says_so() -> None:
    about = pool()
    about["spec"]["flavors"][0] |= {"accelerator": "nvidia", "deviceSampling": "Auto"}
    config = runtime_config(subject(model(), about), KNOWN, Extras(), PLAN)
    assert config.device_sampling == "auto"


def test_sampling_defaults_are_the_model_s() -> None:
    sampling = {"temperature": 0, "topK": 1}
    config = runtime_config(subject(model(sampling=sampling), pool()), KNOWN, Extras(), PLAN)
    assert (config.sampling.temperature, config.sampling.top_k) == (0, 1)
    assert config.sampling.top_p == 0.95


def test_a_config_is_named_by_its_content() -> None:
    def name(**spec: Any) -> str:
        return str(children(model(**spec), pool())[CONFIGMAP]["metadata"]["name"])

    assert name() == name()
    assert name() != name(limits={"maxTokens": 7})


def test_the_plan_label_follows_plan_and_trust_key_only() -> None:
    other = PLAN.model_copy(update={"parallel": 2})
    labels = {plan_label(PLAN, "a"), plan_label(PLAN, "b"), plan_label(other, "a")}
    assert len(labels) == 3
    assert plan_label(PLAN.model_copy(update={"reasons": ("x",)}), "a") in labels


def test_the_drain_fits_into_the_grace_period() -> None:
    pod = pod_of(children(model(), pool(drainTimeoutSeconds=100))[STATEFULSET])
    assert pod["terminationGracePeriodSeconds"] == 115


def test_manifests_are_json_and_small() -> None:
    for kind, child in children(model(), pool()).items():
        assert len(json.dumps(child)) < 10_000, kind


def test_a_real_plan_renders() -> None:
    plan = planned(model(), pool())
    made = children(model(), pool(), plan)
    limits = pod_of(made[STATEFULSET])["containers"][0]["resources"]["limits"]
    assert limits == {"memory": str(plan.memory_limit_bytes)}


DISK = {"spillThreshold": "512Mi", "maxDisk": "64Gi", "prefetchWindow": "128Mi"}


@pytest.mark.parametrize("profile", ["Auto", "Balanced", "HostHeavy", "DiskHeavy"])
@pytest.mark.parametrize("layout", ["Auto", "Split", "Unified"])
@pytest.mark.parametrize("disk", [{}, DISK, {"spillThreshold": 0, "maxDisk": 0}])
@pytest.mark.parametrize("keys", ["f16", "q4_0"])
def test_every_plan_becomes_a_config_that_a_replica_takes(
    profile: str, layout: str, disk: Manifest, keys: str
) -> None:
    offload = {"profile": profile, "kvLayout": layout, "kvTypes": {"key": keys}, **disk}
    offload |= {"checkpointTokens": 2048, "checkpointCount": 8}
    guessing = {"mode": "NGram", "maxTokens": 7}
    about = model(offload=offload, speculation=guessing), pool(access={"cacheIsolation": "Pool"})
    plan = planned(*about)
    told = children(*about, plan)[CONFIGMAP]["data"][RUNTIME_CONFIG_FILE]
    config = RuntimeConfig.model_validate_json(told)
    assert config.kv_unified == (layout == "Unified")
    assert config.kv_key_type == keys
    assert config.kv.host_bytes == plan.host_bytes
    assert config.kv.disk_bytes == plan.disk_bytes
    assert bool(config.kv.disk_path) == bool(plan.disk_bytes)
    assert config.kv.isolation == "shared"
    assert (config.kv.checkpoint_tokens, config.kv.checkpoint_count) == (2048, 8)
    assert config.offload.weights == plan.weights
    assert (config.speculation.mode, config.speculation.max_tokens) == ("ngram", 7)
    if disk == DISK:
        assert (config.kv.host_bytes, config.kv.disk_bytes) == (512 << 20, 64 << 30)
        assert (config.kv.prefetch_bytes, config.kv.disk_path) == (128 << 20, "/kv")


def kv_of(volume: KvVolume | None) -> tuple[Manifest, Manifest, list[Manifest]]:
    """The set's spec, its container, and the pod's volumes called kv."""
    plan = PLAN.model_copy(update={"disk_bytes": 1 << 30, "volume": volume})
    made = children(model(), pool(), plan)[STATEFULSET]
    pod = pod_of(made)
    return made["spec"], pod["containers"][0], [v for v in pod["volumes"] if v["name"] == "kv"]


def test_a_disk_tier_lies_on_a_claim_of_each_replica_that_outlives_scaling() -> None:
    spec, container, volumes = kv_of(KvVolume(bytes=2 << 30, storage_class="fast"))
    (template,) = spec["volumeClaimTemplates"]
    assert template["metadata"]["name"] == "kv"
    assert template["spec"]["storageClassName"] == "fast"
    assert template["spec"]["resources"]["requests"] == {"storage": "2048Mi"}
    keep = {"whenScaled": "Retain", "whenDeleted": "Delete"}
    assert spec["persistentVolumeClaimRetentionPolicy"] == keep
    assert {"name": "kv", "mountPath": "/kv"} in container["volumeMounts"]
    assert volumes == []  # The set's controller puts the claim there.


def test_replicas_that_share_a_user_s_claim_have_a_folder_each() -> None:
    spec, container, volumes = kv_of(KvVolume(bytes=2 << 30, claim="mine"))
    assert "volumeClaimTemplates" not in spec
    assert volumes == [{"name": "kv", "persistentVolumeClaim": {"claimName": "mine"}}]
    mount = {"name": "kv", "mountPath": "/kv", "subPathExpr": "$(POD_NAME)"}
    assert mount in container["volumeMounts"]
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"]}
    assert fields["POD_NAME"] == "metadata.name"


def test_an_ephemeral_disk_tier_asks_the_node_for_its_disk() -> None:
    spec, container, volumes = kv_of(KvVolume(bytes=2 << 30, is_ephemeral=True))
    assert "volumeClaimTemplates" not in spec
    assert volumes == [{"name": "kv", "emptyDir": {"sizeLimit": "2048Mi"}}]
    assert container["resources"]["requests"]["ephemeral-storage"] == "2048Mi"


def test_without_a_disk_tier_there_is_no_volume_for_it() -> None:
    spec, container, volumes = kv_of(None)
    assert "volumeClaimTemplates" not in spec
    assert volumes == []
    assert "/kv" not in {mount["mountPath"] for mount in container["volumeMounts"]}
