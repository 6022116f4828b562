"""The subchart with both CustomResourceDefinitions, as it renders without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from chart.rendering import CHART, kinds, one
from terrace.api.crd import manifests, render

if TYPE_CHECKING:
    from chart.rendering import Helm

KIND = "CustomResourceDefinition"
KEEP = {"helm.sh/resource-policy": "keep"}


def test_the_charts_copy_is_what_the_generator_writes() -> None:
    files = CHART / "charts/crds/files"
    assert sorted(path.name for path in files.iterdir()) == sorted(manifests())
    for name, manifest in manifests().items():
        assert (files / name).read_text() == render(manifest), "run `make crds`"


def test_nothing_is_linked_because_links_do_not_survive_everywhere() -> None:
    assert [path for path in CHART.rglob("*") if path.is_symlink()] == []


def test_both_kinds_are_rendered_as_they_were_generated(helm: Helm) -> None:
    made = helm.render()
    for manifest in manifests().values():
        rendered = one(made, KIND, manifest["metadata"]["name"])
        assert rendered["spec"] == manifest["spec"]
        assert rendered["metadata"]["annotations"] == KEEP
    # Large integers would come out as floats if they went through Helm's YAML.
    assert "e+" not in yaml.safe_dump([m["spec"] for m in made if m["kind"] == KIND])


def test_kinds_are_kept_or_part_of_the_release_or_somebody_elses(helm: Helm) -> None:
    gone = helm.render(crds={"keep": False})
    for manifest in manifests().values():
        assert "annotations" not in one(gone, KIND, manifest["metadata"]["name"])["metadata"]
    assert KIND not in kinds(helm.render(crds={"enabled": False}))
    assert "ALL models and pools" in helm.notes(crds={"keep": False})
    assert "kubectl apply --server-side -f crds/" in helm.notes(crds={"enabled": False})
    assert "`helm uninstall` keeps them" in helm.notes()


def test_the_operators_deployment_remembers_what_the_release_owns(helm: Helm) -> None:
    owned = one(helm.render(), "Deployment", "terrace-operator")["metadata"]["annotations"]
    names = [manifest["metadata"]["name"] for manifest in manifests().values()]
    assert owned == {"terrace.dev/crds": ",".join(sorted(names))}
    without = one(helm.render(crds={"enabled": False}), "Deployment", "terrace-operator")
    assert "annotations" not in without["metadata"]
