"""Chart packages of other versions, and the life of a release with one helm.

Owns: packaging a copy of the chart as it might have been, running helm against a cluster.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from chart.rendering import CHART

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.cluster import LocalCluster

MODEL_CRD = "inferencemodels.terrace.dev"
LIMITS = ("openAPIV3Schema", "properties", "spec", "properties", "limits")
"""A field that the older version lacks."""


def older(folder: Path, helm: Path, version: str = "0.0.9") -> Path:
    """A package of the chart at an older version: other images, fewer requests, one field less."""
    copy = folder / "source"
    shutil.copytree(CHART, copy)
    for file in (copy / "Chart.yaml", copy / "charts/crds/Chart.yaml"):
        chart = yaml.safe_load(file.read_text())
        chart |= {"version": version, "appVersion": version}
        for needed in chart.get("dependencies", []):
            needed["version"] = version
        file.write_text(yaml.safe_dump(chart))
    values = copy / "values.yaml"
    values.write_text(values.read_text().replace("maxRequests: 1024", "maxRequests: 512"))
    file = copy / "charts/crds/files/inferencemodels.yaml"
    crd = yaml.safe_load(file.read_text())
    fields = crd["spec"]["versions"][0]["schema"]
    for key in LIMITS[:-1]:
        fields = fields[key]
    del fields[LIMITS[-1]]
    file.write_text(yaml.safe_dump(crd, sort_keys=False))
    return package(copy, folder, helm)


def package(chart: Path, folder: Path, helm: Path) -> Path:
    """``helm package``; the path of the archive."""
    command = [str(helm), "package", str(chart), "--destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("terrace-*.tgz")
    return made


class Release:
    """``helm`` for one release in one namespace of a cluster."""

    def __init__(self, cluster: LocalCluster, helm: Path, name: str, namespace: str) -> None:
        self._cluster = cluster
        self._helm = helm
        self.name, self.namespace = name, namespace

    def run(self, *args: str, **values: Any) -> str:
        """What helm prints; fails with its words."""
        done = self._attempt(args, values)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *args: str, **values: Any) -> str:
        """Its words where it must fail."""
        done = self._attempt(args, values)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def install(self, chart: Path, *flags: str, **values: Any) -> str:
        """``helm upgrade --install``; the notes."""
        return self.run(
            "upgrade", self.name, str(chart), "--install", *flags, "--values", "-", **values
        )

    def _attempt(
        self, args: tuple[str, ...], values: dict[str, Any]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._helm), *args, "--namespace", self.namespace],
            input=json.dumps(values),
            env=self._cluster.tools.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def knows_limits(cluster: LocalCluster) -> bool:
    """Whether the API has the field that the older version lacks."""
    crd = json.loads(cluster.kubectl("get", "crd", MODEL_CRD, "-o", "json"))
    fields: Any = crd["spec"]["versions"][0]["schema"]
    for key in LIMITS[:-1]:
        fields = fields[key]
    return LIMITS[-1] in fields
