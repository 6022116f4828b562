"""Both CRDs on a real API server: accepted, explained, and what they refuse, in which words."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.waiting import wait_for
from terrace.api.crd import manifests
from terrace.local.errors import LocalClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.local.cluster import LocalCluster

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "crds"
NAMESPACE = "crds"

MODEL: dict[str, Any] = {
    "apiVersion": "terrace.dev/v1alpha1",
    "kind": "InferenceModel",
    "metadata": {"name": "m", "namespace": NAMESPACE},
    "spec": {"poolRef": {"name": "p"}, "source": {"uri": "demo://chat"}},
}
POOL: dict[str, Any] = {
    "apiVersion": "terrace.dev/v1alpha1",
    "kind": "InferencePool",
    "metadata": {"name": "p", "namespace": NAMESPACE},
    "spec": {"flavors": [{"name": "cpu"}]},
}


@pytest.fixture(scope="module")
def api(control_plane: LocalCluster) -> LocalCluster:
    """A control plane with both CRDs, put there as a user would."""
    control_plane.kubectl("apply", "-f", str(CRDS))
    for crd in manifests().values():
        name = crd["metadata"]["name"]
        established = ("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")
        control_plane.kubectl(*established, timeout_s=80)
        wait_for(f"{name} is served", partial(is_served, control_plane, name))
    control_plane.kubectl("create", "namespace", NAMESPACE)
    return control_plane


def is_served(control_plane: LocalCluster, name: str) -> bool:
    """A kind is established a moment before the server serves it."""
    try:
        control_plane.kubectl("get", name, "-A")
    except LocalClusterError:
        return False
    return True


def changed(manifest: dict[str, Any], name: str = "", **spec: Any) -> dict[str, Any]:
    """A copy with another name and other fields of spec; None takes a field away."""
    copied = copy.deepcopy(manifest)
    if name:
        copied["metadata"]["name"] = name
    copied["spec"] |= spec
    copied["spec"] = {key: value for key, value in copied["spec"].items() if value is not None}
    return copied


def apply(api: LocalCluster, *objects: dict[str, Any], flags: tuple[str, ...] = ()) -> str:
    return api.kubectl("apply", *flags, "-f", "-", stdin=yaml.safe_dump_all(objects))


def refusal(api: LocalCluster, *objects: dict[str, Any], flags: tuple[str, ...] = ()) -> str:
    """The API server's words; fails when it takes the objects."""
    with pytest.raises(LocalClusterError) as caught:
        apply(api, *objects, flags=flags)
    return str(caught.value)


def get(api: LocalCluster, *arguments: str) -> Any:
    return json.loads(api.kubectl("get", "-n", NAMESPACE, *arguments, "-o", "json"))


# Installing --------------------------------------------------------------------------------------


def test_both_are_established_without_a_complaint_about_their_schemas(api: LocalCluster) -> None:
    for crd in json.loads(api.kubectl("get", "crd", "-o", "json"))["items"]:
        conditions = {each["type"]: each["status"] for each in crd["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_applying_again_changes_nothing(api: LocalCluster) -> None:
    assert api.kubectl("apply", "-f", str(CRDS)).count("unchanged") == 2


def test_the_server_keeps_the_schemas_as_they_are_written(api: LocalCluster) -> None:
    for written in manifests().values():
        stored = json.loads(api.kubectl("get", "crd", written["metadata"]["name"], "-o", "json"))
        assert stored["spec"]["versions"] == written["spec"]["versions"]


def test_the_examples_pass_a_dry_run_on_the_server(api: LocalCluster) -> None:
    for manifest in sorted((ROOT / "examples").glob("[0-9]*/*.yaml")):
        assert api.kubectl("apply", "--dry-run=server", "-f", str(manifest))


# Good objects ------------------------------------------------------------------------------------

FULL_MODEL = changed(
    MODEL,
    "full-model",
    source={"uri": "http://host/a.gguf", "sha256": "a" * 64},
    servedNames=["org/Model-1:latest", "a"],
    context={"length": 4096, "parallel": 255},
    offload={
        "profile": "HostHeavy",
        "spillThreshold": "512Mi",
        "maxDisk": 68719476736,
        "prefetchWindow": "128Mi",
        "kvBlockTokens": 1024,
        "checkpointTokens": 1048576,
        "checkpointCount": 0,
        "kvTypes": {"key": "q8_0", "value": "q4_0"},
        "kvLayout": "Unified",
        "disk": {"storageClassName": "fast"},
    },
    speculation={"mode": "NGram", "maxTokens": 16},
    sampling={"temperature": 0, "topP": 1, "topK": 0, "minP": 0.05, "repeatPenalty": 1.1},
    limits={"maxTokens": 10},
    replicas=0,
)
FULL_POOL = changed(
    POOL,
    "full-pool",
    flavors=[
        {
            "name": "abcdefghij1",
            "accelerator": "cpu",
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [
                {"operator": "Exists"},
                {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5},
            ],
            "host": {"cpu": 2, "memory": "1.5Gi"},
            "runtimeImage": "registry.example/terrace/runtime:1",
        },
        {"name": "b", "host": {"cpu": "500m"}},
        {
            "name": "c",
            "accelerator": "nvidia",
            "count": 2,
            "memoryPerDevice": "80Gi",
            "resourceName": "nvidia.com/mig-1g.10gb",
            "minResidenceSeconds": 0,
            "packing": "Spread",
            "deviceSampling": "Auto",
        },
        {"name": "d", "accelerator": "amd", "sharing": "Shared", "count": 1},
        {
            "name": "e",
            "accelerator": "nvidia",
            "resourceClaimTemplateName": "gpus",
            "memoryPerDevice": "80Gi",
        },
    ],
    offload={"kvTypes": {"key": "f16"}, "profile": "DiskHeavy", "disk": {"ephemeral": True}},
    modelCache={"size": "1Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"},
    access={"allowedNetworks": ["10.0.0.0/8", "fd00::/8"], "cacheIsolation": "Pool"},
    queue={"maxRequests": 0},
    streams={"readerTokensPerSecond": 0, "intervalMilliseconds": 0},
    drainTimeoutSeconds=0,
)
GOOD = {
    "full model": FULL_MODEL,
    "full pool": FULL_POOL,
    "claim": changed(POOL, "theirs", modelCache={"claimName": "models.v1"}),
    "tiers switched off": changed(MODEL, "off", offload={"spillThreshold": 0, "maxDisk": "0"}),
    "disk of the pool": changed(MODEL, "place", offload={"disk": {"claimName": "mine"}}),
    "class for models": changed(POOL, "class", offload={"maxDisk": 0, "disk": {}}),
    "longest name": changed(MODEL, "m" * 40),
    "pvc": changed(MODEL, "pvc", source={"uri": "pvc://claim/folder/a.gguf"}),
    "projector": changed(
        MODEL, "sees", source={"uri": "hf://o/r:Q8_0"}, projector={"uri": "hf://o/r:Q8_0"}
    ),
    "draft and adapters": changed(
        MODEL,
        "extended",
        draft={"uri": "hf://owner/repo:Q4_0", "secretRef": {"name": "hub"}},
        speculation={"mode": "Draft"},
        servedNames=["extended"],
        adapters=[{"name": "me", "source": {"uri": "s3://bucket/a.gguf"}, "scale": -1}],
    ),
}


@pytest.mark.parametrize("name", list(GOOD))
def test_a_good_object_is_taken(api: LocalCluster, name: str) -> None:
    assert "created" in apply(api, GOOD[name], flags=("--dry-run=server",))


def test_an_object_nobody_has_looked_at_is_not_ready_to_any_tool(api: LocalCluster) -> None:
    # kstatus and Helm: an observed generation other than the object's means "in progress".
    apply(api, changed(MODEL, "fresh"))
    assert get(api, "im", "fresh")["status"] == {"observedGeneration": -1}


def test_what_the_user_left_out_stays_out(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "bare"))
    assert get(api, "im", "bare")["spec"] == MODEL["spec"]


# Bad objects -------------------------------------------------------------------------------------


def flavor(**fields: Any) -> dict[str, Any]:
    return changed(POOL, flavors=[{"name": "cpu", **fields}])


def toleration(**fields: Any) -> dict[str, Any]:
    return flavor(tolerations=[fields])


def cache(**fields: Any) -> dict[str, Any]:
    return changed(POOL, modelCache=fields)


def source(uri: str, **fields: Any) -> dict[str, Any]:
    return changed(MODEL, source={"uri": uri, **fields})


def adapter(name: str) -> dict[str, Any]:
    return {"name": name, "source": {"uri": f"https://host/{name}.gguf"}}


def offload(base: dict[str, Any] = MODEL, **fields: Any) -> dict[str, Any]:
    return changed(base, offload=fields)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "model: long name": (changed(MODEL, "m" * 41), ["metadata.name", "40 characters"]),
    "model: dot": (changed(MODEL, "a.b"), ["metadata.name", "dots are not allowed"]),
    "model: digit": (changed(MODEL, "1a"), ["metadata.name", "start with a letter"]),
    "model: no pool": (changed(MODEL, poolRef=None), ["spec.poolRef", "Required"]),
    "model: no source": (changed(MODEL, source=None), ["spec.source", "Required"]),
    "model: typo": (changed(MODEL, replcas=2), ["spec.replcas", "unknown field"]),
    "uri: scheme": (source("ftp://a/b"), ["spec.source.uri", "https://HOST/PATH"]),
    "uri: no path": (source("https://host"), ["spec.source.uri", "https://HOST/PATH"]),
    "uri: plain http": (source("http://host/a"), ["spec.source.sha256", "set sha256"]),
    "uri: long": (source("https://h/" + "a" * 2048), ["spec.source.uri", "2048"]),
    "sha256": (source("https://h/a", sha256="A" * 64), ["spec.source.sha256", "sha256sum"]),
    "served names: twice": (
        changed(MODEL, servedNames=["a", "a"]),
        ["spec.servedNames[1]", "Duplicate"],
    ),
    "served names: form": (
        changed(MODEL, servedNames=["a", "b c"]),
        ["spec.servedNames[1]", "letters, digits"],
    ),
    "served names: many": (
        changed(MODEL, servedNames=[f"n{i}" for i in range(17)]),
        ["spec.servedNames", "16"],
    ),
    "context.length: small": (changed(MODEL, context={"length": 63}), ["context.length", "64"]),
    "context.length: text": (
        changed(MODEL, context={"length": "8k"}),
        ["context.length", "integer"],
    ),
    "context.parallel": (changed(MODEL, context={"parallel": 256}), ["context.parallel", "255"]),
    "kvTypes": (
        changed(MODEL, offload={"kvTypes": {"key": "q2"}}),
        ["spec.offload.kvTypes.key", "q8_0"],
    ),
    "profile": (offload(profile="Fast"), ["spec.offload.profile", "DiskHeavy"]),
    "spillThreshold: small": (
        offload(spillThreshold="1Mi"),
        ["spec.offload.spillThreshold", "at least 16Mi, or 0"],
    ),
    "spillThreshold: text": (
        offload(spillThreshold="lots"),
        ["spec.offload.spillThreshold", "512Mi"],
    ),
    "spillThreshold: negative": (offload(spillThreshold=-1), ["spec.offload.spillThreshold", "0"]),
    "maxDisk: small": (offload(maxDisk="63Mi"), ["spec.offload.maxDisk", "at least 64Mi, or 0"]),
    "maxDisk: no way there": (
        offload(maxDisk="1Gi", spillThreshold=0),
        ["spec.offload.spillThreshold", "through the host tier"],
    ),
    "prefetchWindow: small": (
        offload(prefetchWindow="1Ki"),
        ["spec.offload.prefetchWindow", "at least 1Mi"],
    ),
    "prefetchWindow: large": (
        offload(prefetchWindow="1Gi", spillThreshold="512Mi"),
        ["spec.offload.prefetchWindow", "must not be above spillThreshold"],
    ),
    "kvBlockTokens: few": (offload(kvBlockTokens=7), ["offload.kvBlockTokens", "8"]),
    "kvBlockTokens: many": (offload(kvBlockTokens=1025), ["offload.kvBlockTokens", "1024"]),
    "checkpointTokens": (offload(checkpointTokens=8), ["offload.checkpointTokens", "16"]),
    "checkpointCount": (offload(checkpointCount=5000), ["offload.checkpointCount", "4096"]),
    "kvLayout": (offload(kvLayout="Paged"), ["spec.offload.kvLayout", "Unified"]),
    "device only": (
        offload(profile="DeviceOnly", maxDisk="1Gi"),
        ["spec.offload.maxDisk", "nothing outside of the device"],
    ),
    "disk: claim and class": (
        offload(maxDisk="1Gi", disk={"claimName": "a", "storageClassName": "b"}),
        ["spec.offload.disk.storageClassName", "drop one"],
    ),
    "disk: claim and ephemeral": (
        offload(maxDisk="1Gi", disk={"claimName": "a", "ephemeral": True}),
        ["spec.offload.disk.claimName", "drop one"],
    ),
    "disk: class and ephemeral": (
        offload(maxDisk="1Gi", disk={"storageClassName": "a", "ephemeral": True}),
        ["spec.offload.disk.storageClassName", "drop one"],
    ),
    "disk: claim": (
        offload(maxDisk="1Gi", disk={"claimName": "A"}),
        ["spec.offload.disk.claimName", "PersistentVolumeClaim"],
    ),
    "disk: no size": (
        offload(POOL, disk={"storageClassName": "a"}),
        ["spec.offload.maxDisk", "no effect without a size"],
    ),
    "isolation": (
        changed(POOL, access={"cacheIsolation": "None"}),
        ["access.cacheIsolation", "Tenant"],
    ),
    "speculation: mode": (
        changed(MODEL, speculation={"mode": "Guess"}),
        ["speculation.mode", "NGram"],
    ),
    "speculation: no draft": (
        changed(MODEL, speculation={"mode": "Draft"}),
        ["spec.draft", "needs spec.draft"],
    ),
    "draft: no mode": (
        changed(MODEL, draft={"uri": "demo://draft"}),
        ["spec.speculation", "set it, or drop draft"],
    ),
    "draft: other mode": (
        changed(MODEL, draft={"uri": "demo://draft"}, speculation={"mode": "NGram"}),
        ["spec.speculation", "no effect without speculation.mode Draft"],
    ),
    "draft: plain http": (
        changed(MODEL, draft={"uri": "http://h/a"}, speculation={"mode": "Draft"}),
        ["spec.draft.sha256", "set sha256"],
    ),
    "projector: the model's own file": (
        changed(
            MODEL,
            source={"uri": "hf://o/r/m.gguf"},
            projector={"uri": "hf://o/r/m.gguf"},
        ),
        ["spec.projector", "name the mmproj file beside it"],
    ),
    "projector: plain http": (
        changed(MODEL, projector={"uri": "http://h/mmproj.gguf"}),
        ["spec.projector.sha256", "set sha256"],
    ),
    "projector: a secret for a claim": (
        changed(MODEL, projector={"uri": "pvc://c/p.gguf", "secretRef": {"name": "s"}}),
        ["spec.projector.secretRef", "drop secretRef"],
    ),
    "projector: no uri": (
        changed(MODEL, projector={"uri": "mmproj.gguf"}),
        ["spec.projector.uri", "must be demo://NAME"],
    ),
    "adapters: twice": (
        changed(MODEL, adapters=[adapter("a"), adapter("a")]),
        ["spec.adapters[1]", "Duplicate"],
    ),
    "adapters: served name": (
        changed(MODEL, servedNames=["a", "b"], adapters=[adapter("b")]),
        ["spec.adapters", "not one of spec.servedNames"],
    ),
    "adapters: own name": (
        changed(MODEL, "me", adapters=[adapter("me")]),
        ["adapter needs a name of its own", "metadata.name"],
    ),
    "adapters: scale": (
        changed(MODEL, adapters=[adapter("a") | {"scale": 11}]),
        ["spec.adapters[0].scale", "10"],
    ),
    "secret: http": (
        source("http://h/a", sha256="a" * 64, secretRef={"name": "key"}),
        ["spec.source.secretRef", "only https://"],
    ),
    "secret: demo": (
        source("demo://chat", secretRef={"name": "key"}),
        ["spec.source.secretRef", "drop secretRef"],
    ),
    "speculation: tokens": (
        changed(MODEL, speculation={"maxTokens": 17}),
        ["speculation.maxTokens", "16"],
    ),
    "temperature": (
        changed(MODEL, sampling={"temperature": -1}),
        ["sampling.temperature", "greater than or equal to 0"],
    ),
    "topP": (changed(MODEL, sampling={"topP": 0}), ["sampling.topP", "greater than 0"]),
    "maxTokens": (changed(MODEL, limits={"maxTokens": 0}), ["limits.maxTokens", "1"]),
    "replicas": (changed(MODEL, replicas=-1), ["spec.replicas", "0"]),
    "pool: long name": (changed(POOL, "p" * 41), ["metadata.name", "40 characters"]),
    "pool: no flavors": (changed(POOL, flavors=[]), ["spec.flavors", "at least 1"]),
    "flavor: twice": (
        changed(POOL, flavors=[{"name": "a"}, {"name": "a"}]),
        ["spec.flavors[1]", "Duplicate"],
    ),
    "flavor: name": (flavor(name="big-one"), ["spec.flavors[0].name", "letters and digits"]),
    "flavor: long name": (flavor(name="a" * 12), ["spec.flavors[0].name", "11"]),
    "flavor: accelerator": (
        flavor(accelerator="GPU"),
        ["flavors[0].accelerator", "name of an accelerator, such as cpu or nvidia"],
    ),
    **{
        f"flavor: {field} without devices": (
            flavor(**{field: value}),
            [f"flavors[0].{field}", f"{field} is about devices"],
        )
        for field, value in {
            "count": 1,
            "memoryPerDevice": "1Gi",
            "sharing": "Shared",
            "resourceName": "a.b/c",
            "resourceClaimTemplateName": "a",
            "minResidenceSeconds": 1,
            "packing": "Pack",
            "deviceSampling": "Off",
        }.items()
    },
    "flavor: a share of two": (
        flavor(accelerator="nvidia", sharing="Shared", count=2),
        ["flavors[0].count", "gives a share of one device"],
    ),
    "flavor: claim and resource": (
        flavor(
            accelerator="nvidia",
            resourceClaimTemplateName="a",
            resourceName="a.b/c",
            memoryPerDevice=1,
        ),
        ["flavors[0].resourceName", "drop resourceName"],
    ),
    "flavor: claim and sharing": (
        flavor(
            accelerator="nvidia",
            resourceClaimTemplateName="a",
            sharing="Exclusive",
            memoryPerDevice=1,
        ),
        ["flavors[0].sharing", "drop sharing"],
    ),
    "flavor: claim of unknown size": (
        flavor(accelerator="nvidia", resourceClaimTemplateName="a"),
        ["flavors[0].memoryPerDevice", "set memoryPerDevice"],
    ),
    "flavor: cpu": (flavor(host={"cpu": "two"}), ["flavors[0].host.cpu", "quantity above zero"]),
    "flavor: no cpu": (flavor(host={"cpu": 0}), ["flavors[0].host.cpu", "quantity above zero"]),
    "flavor: memory": (flavor(host={"memory": "-1Gi"}), ["host.memory", "quantity above zero"]),
    "flavor: label": (flavor(nodeSelector={"a": "b" * 64}), ["nodeSelector", "63"]),
    "toleration: value": (
        toleration(key="a", operator="Exists", value="b"),
        ["tolerations[0].value", "drop value or use Equal"],
    ),
    "toleration: key": (toleration(value="b"), ["tolerations[0].operator", "Exists"]),
    "toleration: seconds": (
        toleration(operator="Exists", tolerationSeconds=1),
        ["tolerations[0].tolerationSeconds", "NoExecute"],
    ),
    "cache: size": (cache(claimName="a", size="1Gi"), ["spec.modelCache.size", "drop one"]),
    "cache: class": (
        cache(claimName="a", storageClassName="b"),
        ["spec.modelCache.storageClassName", "drop one"],
    ),
    "cache: mode": (
        cache(claimName="a", accessMode="ReadWriteOnce"),
        ["spec.modelCache.accessMode", "drop one"],
    ),
    "cache: claim": (cache(claimName="A"), ["spec.modelCache.claimName", "PersistentVolumeClaim"]),
    **{
        f"cache: sharing and {field}": (
            cache(sharing="PerReplica", **{field: value}),
            [f"spec.modelCache.{field}", "set sharing to Shared"],
        )
        for field, value in (
            ("claimName", "a"),
            ("accessMode", "ReadWriteMany"),
            ("deleteUnusedAfterSeconds", 5),
        )
    },
    "cache: quantity": (cache(size="1GB"), ["spec.modelCache.size", "quantity above zero"]),
    "networks: form": (
        changed(POOL, access={"allowedNetworks": ["10.0.0.0"]}),
        ["access.allowedNetworks[0]", "10.0.0.0/8"],
    ),
    "networks: twice": (
        changed(POOL, access={"allowedNetworks": ["10.0.0.0/8"] * 2}),
        ["access.allowedNetworks[1]", "Duplicate"],
    ),
    "queue": (changed(POOL, queue={"maxRequests": 10001}), ["queue.maxRequests", "10000"]),
    "streams": (
        changed(POOL, streams={"readerTokensPerSecond": -1, "intervalMilliseconds": 1001}),
        ["streams.readerTokensPerSecond", "streams.intervalMilliseconds", "1000"],
    ),
    "drain": (changed(POOL, drainTimeoutSeconds=-1), ["drainTimeoutSeconds", "0"]),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_object_is_refused_in_words_that_name_the_field(api: LocalCluster, name: str) -> None:
    manifest, words = BAD[name]
    said = refusal(api, manifest, flags=("--dry-run=server",))
    assert all(word in said for word in words), said


# Changes -----------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "source": (MODEL, {"source": {"uri": "demo://draft"}}, ["spec.source", "immutable"]),
    "sha256": (
        MODEL,
        {"source": {"uri": "demo://chat", "sha256": "a" * 64}},
        ["spec.source", "make a new InferenceModel"],
    ),
    "claim": (
        changed(POOL, modelCache={"claimName": "a"}),
        {"modelCache": {"claimName": "b"}},
        ["spec.modelCache.claimName", "make a new InferencePool"],
    ),
    "claim dropped": (
        changed(POOL, modelCache={"claimName": "a"}),
        {"modelCache": None},
        ["spec.modelCache.claimName", "immutable"],
    ),
    "sharing added": (
        POOL,
        {"modelCache": {"sharing": "PerReplica"}},
        ["spec.modelCache.sharing", "immutable"],
    ),
    "claim added": (POOL, {"modelCache": {"claimName": "a"}}, ["modelCache.claimName"]),
    "class": (
        changed(POOL, modelCache={"storageClassName": "a"}),
        {"modelCache": {"storageClassName": "b"}},
        ["spec.modelCache.storageClassName", "immutable"],
    ),
    "mode": (
        changed(POOL, modelCache={"accessMode": "ReadWriteOnce"}),
        {"modelCache": {"accessMode": "ReadWriteMany"}},
        ["spec.modelCache.accessMode", "immutable"],
    ),
    "smaller": (
        changed(POOL, modelCache={"size": "2Gi"}),
        {"modelCache": {"size": "1536Mi"}},
        ["spec.modelCache.size", "can only grow"],
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_cannot_change_is_refused_with_the_way_out(api: LocalCluster, name: str) -> None:
    before, change, words = CHANGES[name]
    before = changed(before, f"change-{name.replace(' ', '-')}")
    apply(api, before)
    said = refusal(api, changed(before, **change))
    assert all(word in said for word in words), said


def test_what_can_change_does(api: LocalCluster) -> None:
    before = changed(POOL, "grows", modelCache={"size": "1Gi"})
    apply(api, before, changed(MODEL, "moves"))
    apply(
        api,
        changed(before, modelCache={"size": "1536Mi"}, queue={"maxRequests": 1}),
        changed(MODEL, "moves", poolRef={"name": "other"}, context={"length": 64}, replicas=2),
    )
    assert get(api, "im", "moves")["metadata"]["generation"] == 2


def test_a_spec_takes_no_status_and_a_status_no_spec(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "halves"))
    patch = {"spec": {"replicas": 5}, "status": {"replicas": 1, "observedGeneration": 1}}
    patch_halves = ("patch", "im", "halves", "-n", NAMESPACE, "--type=merge", "-p")
    api.kubectl(*patch_halves, json.dumps(patch), "--subresource=status")
    found = get(api, "im", "halves")
    assert "replicas" not in found["spec"]
    assert found["status"] == {"replicas": 1, "observedGeneration": 1}
    api.kubectl(*patch_halves, json.dumps({"status": {"replicas": 9}}))
    assert get(api, "im", "halves")["status"]["replicas"] == 1


# Scale -------------------------------------------------------------------------------------------


def scale(api: LocalCluster, *arguments: str) -> str:
    return api.kubectl("scale", "-n", NAMESPACE, *arguments)


def test_scale_works_in_every_form_on_a_model_that_sets_replicas(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "scaled", replicas=1))
    scale(api, "im", "scaled", "--replicas=2")
    scale(api, "inferencemodels.terrace.dev/scaled", "--current-replicas=2", "--replicas=3")
    version = get(api, "im", "scaled")["metadata"]["resourceVersion"]
    scale(api, "im/scaled", f"--resource-version={version}", "--replicas=0")
    assert get(api, "im", "scaled")["spec"]["replicas"] == 0
    with pytest.raises(LocalClusterError, match="Expected replicas to be 5"):
        scale(api, "im", "scaled", "--current-replicas=5", "--replicas=1")


def test_scale_works_on_a_model_that_leaves_replicas_out(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "unset"))
    scale(api, "im", "unset", "--replicas=2")
    assert get(api, "im", "unset")["spec"]["replicas"] == 2


def test_scale_with_a_precondition_needs_replicas_to_be_set(api: LocalCluster) -> None:
    # A limit of CustomResourceDefinitions, told in `kubectl explain im.spec.replicas`.
    apply(api, changed(MODEL, "open"))
    with pytest.raises(LocalClusterError, match=r"\.spec\.replicas.* does not exist"):
        scale(api, "im", "open", "--current-replicas=1", "--replicas=2")


def test_an_autoscaler_reads_replicas_and_selector(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "auto", replicas=3))
    status = {"status": {"replicas": 2, "selector": "terrace.dev/model=auto"}}
    api.kubectl(
        "patch",
        *("im", "auto", "-n", NAMESPACE, "--subresource=status", "--type=merge"),
        *("-p", json.dumps(status)),
    )
    found = get(api, "im", "auto", "--subresource=scale")
    assert found["spec"] == {"replicas": 3}
    assert found["status"] == status["status"]


# What people see ---------------------------------------------------------------------------------


def test_short_names_and_the_category_work(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "seen"), changed(POOL, "seen"))
    names = api.kubectl("get", "im,ipool", "-n", NAMESPACE, "-o", "name")
    assert "inferencemodel.terrace.dev/seen" in names
    assert "inferencepool.terrace.dev/seen" in names
    assert "inferencepool.terrace.dev/seen" in api.kubectl(
        "get", "terrace", "-n", NAMESPACE, "-o", "name"
    )


def test_columns_show_the_state_at_a_glance(api: LocalCluster) -> None:
    apply(api, changed(MODEL, "columns"))
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "ReplicasStarting",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {
        "conditions": [condition],
        "replicas": 2,
        "readyReplicas": 1,
        "placement": {"flavor": "cpu", "statefulSet": "columns-cpu"},
        "url": "http://gateway/v1",
        "download": {
            "stage": "download",
            "doneBytes": 43,
            "totalBytes": 100,
            "summary": "43%, 12.0 MiB/s, 3m20s left",
        },
    }
    api.kubectl(
        "patch",
        *("im", "columns", "-n", NAMESPACE, "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": status})),
    )

    def table(*flags: str) -> list[list[str]]:
        text = api.kubectl("get", "im", "columns", "-n", NAMESPACE, *flags)
        return [line.split() for line in text.splitlines()]

    head, row = wait_for("the columns", table)
    titles = "NAME READY STATUS AVAILABLE REPLICAS FLAVOR CONTEXT DOWNLOAD AGE"
    assert head == titles.split()
    assert row[:6] == ["columns", "False", "ReplicasStarting", "1", "2", "cpu"]
    assert row[6:-1] == ["43%,", "12.0", "MiB/s,", "3m20s", "left"]
    head, row = table("-o", "wide")
    assert {"POOL", "URL", "SOURCE", "DIGEST"} <= set(head)
    assert {"p", "http://gateway/v1", "demo://chat"} <= set(row)


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Every field below ``path`` with its description."""
    inner = schema.get("items", schema)
    for name, child in inner.get("properties", {}).items():
        if child.get("description"):
            yield f"{path}.{name}", child["description"]
        yield from fields(child, f"{path}.{name}")


@pytest.mark.parametrize("crd", manifests().values(), ids=list(manifests()))
def test_explain_has_a_text_for_every_field(api: LocalCluster, crd: dict[str, Any]) -> None:
    kind = crd["spec"]["names"]["kind"]
    written = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    wanted = dict(fields(written, kind))
    # The server has words of its own for these.
    del wanted[f"{kind}.apiVersion"], wanted[f"{kind}.kind"]
    assert len(wanted) > 30

    def untold() -> dict[str, str]:
        told = dict(fields(published(api, kind), kind))
        return {path: text for path, text in wanted.items() if told.get(path) != text}

    with suppress(AssertionError):  # Then the next line says which.
        # The server makes its document some time after it has taken a schema.
        wait_for("every text", lambda: not untold())
    assert untold() == {}


def published(api: LocalCluster, kind: str) -> dict[str, Any]:
    """The schema where kubectl reads it: one call for all fields. Empty while there is none."""
    document = json.loads(api.kubectl("get", "--raw", "/openapi/v3/apis/terrace.dev/v1alpha1"))
    schemas: dict[str, dict[str, Any]] = document["components"]["schemas"]
    return next((each for name, each in schemas.items() if name.endswith(f".{kind}")), {})


def test_explain_prints_them(api: LocalCluster) -> None:
    said = api.kubectl("explain", "im.spec.context.length")
    assert "Tokens of one conversation" in said
    assert "8192" in said
    assert "flavors" in api.kubectl("explain", "ipool.spec")
