"""Releases on a real API server, under both helms: the kinds come, are upgraded, stay or go."""

from __future__ import annotations

import base64
import json
import secrets
from functools import partial
from typing import TYPE_CHECKING

import pytest

from chart.releases import Release, knows_limits, older
from chart.rendering import CHART, ROOT
from support.waiting import wait_for
from terrace.local.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from chart.rendering import Helm, Manifest
    from terrace.local.cluster import LocalCluster

CRDS = ("inferencemodels.terrace.dev", "inferencepools.terrace.dev")
POOL = {
    "apiVersion": "terrace.dev/v1alpha1",
    "kind": "InferencePool",
    "metadata": {"name": "p", "namespace": "default"},
    "spec": {"flavors": [{"name": "cpu"}]},
}
ONE_HELM = pytest.mark.parametrize("helm", ["helm4"], indirect=True)
"""For what the chart decides alone; templates are rendered alike by both."""
pytestmark = pytest.mark.timeout(600)
MAX_SECRET_BYTES = 300_000
"""Of the release's Secret; etcd and helm stop at 1 MiB."""


@pytest.fixture
def release(api: LocalCluster, helm: Helm) -> Iterator[Release]:
    """A namespace of its own; no kind is there before and after."""
    yield made(api, helm, "terrace")
    ours = ("-l", "app.kubernetes.io/name=terrace", "--wait=true")
    if there := [name for name in CRDS if name in crds(api)]:
        # A kind that goes before it was served is tried again and again, ever more seldom.
        established(api, there)
        api.kubectl("delete", "crd", *there, "--wait=true", timeout_s=240)
    api.kubectl("delete", "clusterrole,clusterrolebinding", *ours)


def made(api: LocalCluster, helm: Helm, name: str) -> Release:
    namespace = f"n{secrets.token_hex(4)}"  # Deleting one takes the API longer than a test.
    api.kubectl("create", "namespace", namespace)
    return Release(api, helm.path, name, namespace)


def crds(api: LocalCluster) -> dict[str, Manifest]:
    items = json.loads(api.kubectl("get", "crd", "-o", "json"))["items"]
    return {each["metadata"]["name"]: each["metadata"].get("annotations", {}) for each in items}


def established(api: LocalCluster, names: Iterable[str]) -> None:
    """Wait until these kinds are served."""
    wanted = [f"crd/{name}" for name in names]
    api.kubectl("wait", "--for=condition=Established", "--timeout=60s", *wanted, timeout_s=80)
    for name in names:
        wait_for(f"{name} to be served", partial(is_served, api, name))


def is_served(api: LocalCluster, name: str) -> bool:
    try:
        api.kubectl("get", name, "-A")
    except CommandError:
        return False
    return True


def put_pool(api: LocalCluster) -> None:
    established(api, CRDS)
    api.kubectl("apply", "-f", "-", stdin=json.dumps(POOL))


def test_an_upgrade_upgrades_the_kinds_and_a_rollback_takes_them_back(
    api: LocalCluster, release: Release, helm: Helm, tmp_path: Path
) -> None:
    release.install(older(tmp_path, helm.path))
    assert not knows_limits(api)
    put_pool(api)
    uid = api.kubectl("get", "ipool", "p", "-o", "jsonpath={.metadata.uid}")
    release.install(CHART)
    assert knows_limits(api)
    release.run("rollback", release.name, "1")
    assert not knows_limits(api)
    release.install(CHART)
    assert knows_limits(api)
    assert api.kubectl("get", "ipool", "p", "-o", "jsonpath={.metadata.uid}") == uid


def test_kept_kinds_outlive_the_release_and_come_back_to_it(
    api: LocalCluster, release: Release
) -> None:
    assert "`helm uninstall` keeps them" in release.install(CHART)
    put_pool(api)
    release.run("uninstall", release.name)
    assert sorted(crds(api)) == sorted(CRDS)
    assert "InferencePool" in api.kubectl("get", "ipool", "p", "-o", "yaml")
    release.install(CHART, crds={"keep": False})
    release.run("uninstall", release.name)
    wait_for("the kinds are gone", lambda: not crds(api))


def test_kinds_of_somebody_else_are_left_alone_until_they_are_handed_over(
    api: LocalCluster, release: Release, helm: Helm, tmp_path: Path
) -> None:
    api.kubectl("apply", "-f", str(ROOT / "crds"))
    notes = release.install(older(tmp_path, helm.path))
    assert "belong to somebody else" in notes
    assert knows_limits(api)  # The older version was not put in their place.
    assert all("meta.helm.sh/release-name" not in notes for notes in crds(api).values())
    orders = [line.split()[1:] for line in notes.splitlines() if line.startswith("  kubectl")]
    for order in orders:
        if order[0] in ("label", "annotate"):
            api.kubectl(*order)
    force = ["--force-conflicts"] if helm.path.name == "helm" else []
    assert "belong to somebody else" not in release.install(CHART, *force)
    release.install(CHART)
    owner = {notes["meta.helm.sh/release-namespace"] for notes in crds(api).values()}
    assert owner == {release.namespace}
    api.kubectl("delete", "crd", CRDS[0], "--wait=true")
    release.install(CHART)
    assert sorted(crds(api)) == sorted(CRDS)


@ONE_HELM
def test_a_second_release_neither_takes_nor_deletes_the_kinds_of_the_first(
    api: LocalCluster, release: Release, helm: Helm
) -> None:
    release.install(CHART, crds={"keep": False}, watchNamespaces=[release.namespace])
    second = made(api, helm, "other")
    notes = second.install(CHART, watchNamespaces=[second.namespace])
    assert "belong to somebody else" in notes
    second.run("uninstall", second.name)
    assert sorted(crds(api)) == sorted(CRDS)


@ONE_HELM
def test_kinds_that_lost_helms_marks_are_not_taken_for_somebody_elses_and_deleted(
    api: LocalCluster, release: Release
) -> None:
    release.install(CHART)
    put_pool(api)
    for name in CRDS:
        marks = [f"meta.helm.sh/release-{what}-" for what in ("name", "namespace")]
        api.kubectl("annotate", "crd", name, *marks, "helm.sh/resource-policy-")
    release.install(CHART)
    assert sorted(crds(api)) == sorted(CRDS)
    assert "InferencePool" in api.kubectl("get", "ipool", "p", "-o", "yaml")


@ONE_HELM
def test_the_releases_secret_is_far_from_its_limit(api: LocalCluster, release: Release) -> None:
    monitors = {"dashboards": {"enabled": True}}
    release.install(CHART, metrics=monitors)
    query = ("get", "secret", "-n", release.namespace, "-l", "owner=helm", "-o", "json")
    (stored,) = json.loads(api.kubectl(*query))["items"]
    size = len(base64.b64decode(stored["data"]["release"]))
    assert 10_000 < size < MAX_SECRET_BYTES


def test_a_namespaced_release_asks_the_api_for_nothing_cluster_scoped(
    api: LocalCluster, release: Release
) -> None:
    """With an account that may do everything in its namespace and nothing outside of it."""
    namespace = release.namespace
    api.kubectl("create", "serviceaccount", "tenant", "-n", namespace)
    account = f"--serviceaccount={namespace}:tenant"
    # To give rights one must have them; `admin` has none for our kinds without the viewer's role.
    rule = ("role", "owner", "--verb=*", "--resource=*.*", "-n", namespace)
    api.kubectl("create", *rule)
    api.kubectl("create", "rolebinding", "owner", "--role=owner", account, "-n", namespace)
    user = f"--kube-as-user=system:serviceaccount:{namespace}:tenant"
    refusal = release.refusal(
        "install", release.name, str(CHART), user, "--values", "-", watchNamespaces=[namespace]
    )
    assert "forbidden" in refusal
    notes = release.install(
        CHART,
        user,
        watchNamespaces=[namespace],
        crds={"enabled": False},
        aggregateRoles=False,
        nodeRole=False,
    )
    assert "kubectl create clusterrole terrace-nodes" in notes
    release.run("uninstall", release.name, user)
