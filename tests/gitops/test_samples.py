"""The samples do what their comments promise, each on the real control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cluster.controller_api import Manifest, eventually
from gitops.applying import APPLY, make_namespace, rendered
from gitops.evaluators import EXAMPLES, judge, question
from gitops.git import WAIT_S, Git
from support.controller_objects import condition
from terrace.api import names
from terrace.api.crd import manifests as crd_manifests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.controller_api import Api
    from terrace.local.cluster import LocalCluster

SAMPLES = EXAMPLES / "gitops"


def one(manifests: list[Manifest], kind: str) -> dict[str, Any]:
    (found,) = [each for each in manifests if each["kind"] == kind]
    return found


@pytest.mark.parametrize(
    ("overlay", "namespace", "model", "pool"),
    [("dev", "models-dev", "dev-chat", "dev-cpu"), ("prod", "models", "chat", "cpu")],
)
def test_an_overlay_renames_everything_alike(
    overlay: str, namespace: str, model: str, pool: str, control_plane: LocalCluster
) -> None:
    made = rendered(control_plane, SAMPLES / "overlays" / overlay)
    models, pools = one(made, names.MODEL_KIND), one(made, names.POOL_KIND)
    assert (models["metadata"]["name"], pools["metadata"]["name"]) == (model, pool)
    assert models["spec"]["poolRef"]["name"] == pool
    assert one(made, "Namespace")["metadata"]["name"] == namespace
    assert {each["metadata"]["namespace"] for each in (models, pools)} == {namespace}
    assert {"app.kubernetes.io/part-of"} == set(models["metadata"]["labels"])


def test_an_overlay_sets_image_replicas_and_sizes(control_plane: LocalCluster) -> None:
    made = rendered(control_plane, SAMPLES / "overlays/prod")
    pool, model = one(made, names.POOL_KIND), one(made, names.MODEL_KIND)
    assert pool["spec"]["flavors"][0]["runtimeImage"] == "registry.example/terrace/runtime:0.1.0"
    assert pool["spec"]["modelCache"]["size"] == "50Gi"
    assert model["spec"]["replicas"] == 2
    assert "replicas" not in one(
        rendered(control_plane, SAMPLES / "overlays/dev"), "InferenceModel"
    )


def test_names_of_secrets_and_claims_follow_their_objects(
    tmp_path: Any, control_plane: LocalCluster
) -> None:
    """The field specs of base/terrace.yaml, on a model and a pool that name everything there is."""
    (tmp_path / "terrace.yaml").write_text((SAMPLES / "base/terrace.yaml").read_text())
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [objects.yaml]\nconfigurations: [terrace.yaml]\nnamePrefix: our-\n"
        "secretGenerator:\n- name: hub\n  literals: [token=t]\n"
    )
    (tmp_path / "objects.yaml").write_text(_EVERY_NAME)
    made = rendered(control_plane, tmp_path)
    model, pool = one(made, names.MODEL_KIND)["spec"], one(made, names.POOL_KIND)["spec"]
    secret = one(made, "Secret")["metadata"]["name"]
    assert secret.startswith("our-hub-")
    beside = [model["projector"], model["draft"], model["adapters"][0]["source"]]
    files = [model["source"], *beside]
    assert [file["secretRef"]["name"] for file in files] == [secret] * 4
    assert model["poolRef"]["name"] == "our-cpu"
    claims = (pool["modelCache"], pool["offload"]["disk"], model["offload"]["disk"])
    assert {each["claimName"] for each in claims} == {"our-disk"}


def test_every_name_that_a_spec_refers_to_is_known_to_kustomize() -> None:
    known = {
        (spec["kind"], spec["path"])
        for reference in yaml.safe_load((SAMPLES / "base/terrace.yaml").read_text())[
            "nameReference"
        ]
        for spec in reference["fieldSpecs"]
    }
    referring = {
        (crd["spec"]["names"]["kind"], path)
        for crd in crd_manifests().values()
        for path in references(
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec"
        )
    }
    assert known == referring


def references(schema: Manifest, path: str) -> Iterator[str]:
    """Paths of fields that name another object of the namespace, as kustomize writes them."""
    schema = schema.get("items", schema)
    for name, field in (schema.get("properties") or {}).items():
        if name.endswith("Ref"):
            yield f"{path}/{name}/name"
        elif name in ("claimName", "resourceClaimTemplateName"):
            yield f"{path}/{name}"
        else:
            yield from references(field, f"{path}/{name}")


def test_a_model_waits_for_the_secret_that_external_secrets_makes(git: Git, api: Api) -> None:
    made = git.apply("gitops/external-secrets")
    model, wanted = one(made, names.MODEL_KIND), one(made, "ExternalSecret")["spec"]
    eventually(
        lambda: condition(git.applier.live(model), "Ready").get("reason") in _WAITS,
        "its file is waited for",
        timeout_s=WAIT_S,
    )
    live = git.applier.live(model)
    said = judge([question(name, live) for name in ("kstatus", "flux", "argo")])
    assert [verdict.word for verdict in said] == ["InProgress", "InProgress", "Progressing"]
    # As External Secrets makes it.
    keys = {each["secretKey"]: "hf_x" for each in wanted["data"]}
    body = {"metadata": {"name": wanted["target"]["name"]}, "stringData": keys}
    api.request("POST", "/api/v1/namespaces/models/secrets", body)
    try:
        git.wait_ready(model)
    finally:
        api.request("DELETE", f"/api/v1/namespaces/models/secrets/{wanted['target']['name']}")


def test_health_of_our_kinds_is_added_to_argo_cds_own_settings(
    api: Api, control_plane: LocalCluster
) -> None:
    make_namespace(api, "argocd")
    path = "/api/v1/namespaces/argocd/configmaps/argocd-cm"
    theirs = {"url": "https://argocd.example", "timeout.reconciliation": "180s"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}}
    api.request("PATCH", f"{path}?fieldManager=helm", {**body, "data": theirs}, APPLY)
    file = str(SAMPLES / "argocd/argocd-cm.yaml")
    control_plane.kubectl("apply", "--server-side", "--field-manager=terrace", "-f", file)
    data = api.request("GET", path)["data"]
    assert {key: data[key] for key in theirs} == theirs
    assert len(data) == len(theirs) + 2
    api.request("DELETE", path)


_WAITS = ("FetchPending", "Fetching")
_EVERY_NAME = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: terrace.dev/v1alpha1
kind: InferencePool
metadata: {name: cpu}
spec:
  flavors: [{name: cpu}]
  modelCache: {claimName: disk}
  offload: {disk: {claimName: disk}}
---
apiVersion: terrace.dev/v1alpha1
kind: InferenceModel
metadata: {name: chat}
spec:
  poolRef: {name: cpu}
  source: {uri: "hf://a/b", secretRef: {name: hub}}
  projector: {uri: "hf://a/p", secretRef: {name: hub}}
  draft: {uri: "hf://a/d", secretRef: {name: hub}}
  adapters: [{name: one, source: {uri: "hf://a/e", secretRef: {name: hub}}}]
  offload: {disk: {claimName: disk}}
"""
