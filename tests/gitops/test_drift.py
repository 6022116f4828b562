"""Nothing that Git owns ever differs: not after applying, nor while replicas and status change."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from cluster.controller_api import ApiError, Manifest, eventually
from cluster.controller_world import MANAGED
from gitops.applying import GITOPS, example_folders, placed, rendered
from gitops.evaluators import EXAMPLES
from gitops.git import WAIT_S, Git
from terrace.api import names
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    SERVICE,
    STATEFULSET,
    Kind,
)

if TYPE_CHECKING:
    from cluster.controller_api import Api
    from terrace.local.cluster import LocalCluster

CHILDREN = (CLAIM, JOB, CONFIGMAP, SERVICE, STATEFULSET, BUDGET)
OURS = {names.MODEL_KIND, names.POOL_KIND}


def ours(manifests: list[Manifest], kind: str = "") -> list[Manifest]:
    return [each for each in manifests if each["kind"] in ({kind} if kind else OURS)]


@pytest.mark.parametrize("folder", example_folders())
def test_an_applied_example_stays_as_git_has_it(folder: str, git: Git) -> None:
    manifests = git.apply(folder)
    for manifest in ours(manifests):
        git.wait_seen(manifest)
    assert git.generations(ours(manifests)) == [1] * len(ours(manifests))
    for model in ours(manifests, names.MODEL_KIND):
        if "replicas" not in model["spec"]:
            git.applier.scale(model, 2)
            assert git.wait_seen(model)["spec"]["replicas"] == 2
    scaled = git.generations(ours(manifests))
    for manifest in manifests:
        assert git.applier.drift(manifest) == []
        git.applier.apply(manifest)
    assert git.generations(ours(manifests)) == scaled


def test_nothing_differs_while_a_model_goes_from_0_to_8_and_back(git: Git) -> None:
    manifests = git.apply("gitops/overlays/dev")
    (model,) = ours(manifests, names.MODEL_KIND)
    for replicas in (0, 8, 0):
        git.applier.scale(model, replicas)
        assert git.applier.drift(model) == []
        git.wait_seen(model, replicas)
        assert [git.applier.drift(each) for each in manifests] == [[]] * len(manifests)
        git.wait_ready(model)
        # It shows status, too, which may change between its two looks.
        eventually(
            lambda: kubectl_diff(git.cluster, "gitops/overlays/dev") == "",
            "kubectl diff shows nothing",
            timeout_s=WAIT_S,
        )
    before = git.generations([model])
    git.applier.apply(model)
    assert git.generations([model]) == before


def test_what_tools_track_by_stays_on_their_objects_and_pruning_takes_the_rest(
    git: Git, api: Api
) -> None:
    marks = {"app.kubernetes.io/instance": "models", "kustomize.toolkit.fluxcd.io/name": "models"}
    tracked = {"argocd.argoproj.io/tracking-id": "models:terrace.dev/InferenceModel:tracked/demo"}
    manifests = git.apply("01-minimal", "tracked")
    for manifest in manifests:
        manifest["metadata"] |= {"labels": marks, "annotations": tracked}
        git.applier.apply(manifest)
        git.wait_ready(manifest)
        assert git.applier.drift(manifest) == []
    made = children(api, "tracked")
    assert {kind for kind, _ in made} == {*CHILDREN} - {BUDGET}  # It has one replica.
    for child in made.values():
        assert not {*marks} & {*child["metadata"].get("labels", {})}
        assert not {*tracked} & {*child["metadata"].get("annotations", {})}
    for manifest in reversed(manifests):  # As Argo CD prunes: what it owned goes first.
        body = {"propagationPolicy": "Foreground"}
        api.request("DELETE", git.applier.path(manifest), body)
    eventually(lambda: not children(api, "tracked"), "nothing is left", timeout_s=WAIT_S)


def children(api: Api, namespace: str) -> dict[tuple[Kind, str], Manifest]:
    """What the operator has made there."""
    return {
        (kind, child["metadata"]["name"]): child
        for kind in CHILDREN
        for child in api.items(kind, namespace, MANAGED)
    }


def test_what_is_pruned_and_applied_again_at_once_becomes_ready(git: Git) -> None:
    manifests = git.apply("01-minimal", "again")
    (model,) = ours(manifests, names.MODEL_KIND)
    git.wait_ready(model)
    git.forget(manifests)
    git.apply("01-minimal", "again")
    git.wait_ready(model)


def test_replicas_that_git_names_are_gits(git: Git) -> None:
    manifests = git.apply("gitops/overlays/prod")
    (model,) = ours(manifests, names.MODEL_KIND)
    git.applier.scale(model, 3)
    with pytest.raises(ApiError, match='conflict with \\\\"autoscaler') as refused:
        git.applier.drift(model)
    assert refused.value.status == 409
    assert "+  replicas: 2" in kubectl_diff(git.cluster, "gitops/overlays/prod")
    assert git.applier.drift(model, force=True) == [
        "spec.replicas: 3 -> 2",
        "metadata.generation: 2 -> 3",
    ]


def test_the_operator_owns_status_and_nothing_else(git: Git) -> None:
    for manifest in ours(git.apply("01-minimal", "owners")):
        git.wait_ready(manifest)
        managers = git.applier.live(manifest)["metadata"]["managedFields"]
        (mine,) = [each for each in managers if each["manager"] == GITOPS]
        others = [each for each in managers if each["manager"] != GITOPS]
        assert set(mine["fieldsV1"]) == {"f:spec"}
        assert others
        for each in others:
            assert (each.get("subresource"), set(each["fieldsV1"])) == ("status", {"f:status"})


def test_two_client_side_applies_change_nothing(git: Git) -> None:
    folder = str(EXAMPLES / "01-minimal")
    manifests = placed(rendered(git.cluster, EXAMPLES / "01-minimal"), "default")
    try:
        git.cluster.kubectl("apply", "-f", folder)
        for manifest in manifests:
            git.wait_seen(manifest)
        said = git.cluster.kubectl("apply", "-f", folder)
        assert said.count("unchanged") == len(manifests)
        assert git.generations(manifests) == [1, 1]
    finally:
        git.cluster.kubectl("delete", "-f", folder)


def kubectl_diff(cluster: LocalCluster, folder: str) -> str:
    """What ``kubectl diff`` prints of a folder; it exits 1 where something differs."""
    done = subprocess.run(
        cluster.kubectl_command(
            "diff", "--server-side", "--force-conflicts", f"--field-manager={GITOPS}",
            "-k", str(EXAMPLES / folder),
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout
