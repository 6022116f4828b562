"""Every example is taken by a real API server, those for other projects by the schemas of these."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from cluster.controller_api import ApiError
from gitops.applying import Applier, example_folders, make_namespace, rendered
from gitops.evaluators import EXAMPLES, documents
from gitops.programs import GENERATED, PUBLISHED, foreign_crds
from terrace.api import names
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.controller_api import Api, Manifest
    from terrace.local.cluster import LocalCluster

GITOPS = EXAMPLES / "gitops"
CHART = EXAMPLES.parent / "charts/terrace"
FOREIGN = {
    "Application": GITOPS / "argocd/applications.yaml",
    "GitRepository": GITOPS / "flux/source.yaml",
    "Kustomization": GITOPS / "flux/kustomizations.yaml",
    "OCIRepository": GITOPS / "flux/operator/chart.yaml",
    "HelmRelease": GITOPS / "flux/operator/chart.yaml",
    "ExternalSecret": GITOPS / "external-secrets/external-secret.yaml",
}


def of_kind(kind: str, path: Path | None = None) -> list[Manifest]:
    return [each for each in documents(path or FOREIGN[kind]) if each["kind"] == kind]


@pytest.fixture(scope="session")
def applier(api: Api, all_kinds: None) -> Applier:
    return Applier(api)


@pytest.mark.parametrize("folder", example_folders())
def test_the_api_server_takes_every_example(
    folder: str, applier: Applier, api: Api, control_plane: LocalCluster
) -> None:
    manifests = rendered(control_plane, EXAMPLES / folder)
    assert manifests
    for manifest in manifests:
        if "namespace" in manifest["metadata"]:
            make_namespace(api, manifest["metadata"]["namespace"])
        taken = applier.apply(manifest, dry_run=True)
        assert taken["metadata"]["name"] == manifest["metadata"]["name"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_objects_of_other_projects_are_held_against_their_real_schema(
    kind: str, applier: Applier, api: Api
) -> None:
    manifest = of_kind(kind)[0]
    make_namespace(api, manifest["metadata"].get("namespace", "default"))
    spec = {**manifest["spec"], "nonsense": 1}
    with pytest.raises(ApiError, match="nonsense"):
        applier.apply({**manifest, "spec": spec}, dry_run=True)


def test_a_misspelled_field_of_ours_is_refused(applier: Applier) -> None:
    (model,) = of_kind(names.MODEL_KIND, GITOPS / "base/model.yaml")
    with pytest.raises(ApiError, match="contxt"):
        applier.apply({**model, "spec": {**model["spec"], "contxt": {}}}, dry_run=True)


def test_every_schema_is_one_that_its_project_published() -> None:
    made = {yaml.safe_load(file.read_text())["spec"]["names"]["kind"] for file in _schemas()}
    assert made == set(FOREIGN)
    assert len(PUBLISHED) == 4
    assert GENERATED.startswith("github.com/fluxcd/")


@pytest.mark.parametrize(
    "values",
    [
        of_kind("Application")[0]["spec"]["source"]["helm"]["valuesObject"],
        of_kind("HelmRelease")[0]["spec"]["values"],
    ],
    ids=["argocd", "flux"],
)
def test_the_chart_takes_the_values(values: Manifest) -> None:
    helm = find_binaries(["helm"], None, print)["helm"]
    done = subprocess.run(
        [helm, "template", "terrace", CHART, "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "registry.example/terrace/operator" in done.stdout


def test_what_the_samples_refer_to_exists() -> None:
    (source,) = of_kind("GitRepository")
    (chart,) = of_kind("OCIRepository")
    (release,) = of_kind("HelmRelease")
    assert release["spec"]["chartRef"]["name"] == chart["metadata"]["name"]
    for each in of_kind("Kustomization"):
        assert each["spec"]["sourceRef"]["name"] == source["metadata"]["name"]
        assert (GITOPS / each["spec"]["path"]).is_dir()
    first, second = of_kind("Kustomization")
    assert second["spec"]["dependsOn"] == [{"name": first["metadata"]["name"]}]
    operator, models = of_kind("Application")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert operator["spec"]["source"]["targetRevision"] == version
    assert (GITOPS / models["spec"]["source"]["path"]).is_dir()
    (secret,) = of_kind("ExternalSecret")
    (model,) = of_kind(names.MODEL_KIND, GITOPS / "external-secrets/model.yaml")
    assert model["spec"]["source"]["secretRef"]["name"] == secret["spec"]["target"]["name"]
    assert [each["secretKey"] for each in secret["spec"]["data"]] == ["token"]


def _schemas() -> list[Path]:
    return sorted(foreign_crds().glob("*.yaml"))
