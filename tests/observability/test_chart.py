"""What the chart makes of rules, dashboards and PodMonitors."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from observability.tools import CHART, DASHBOARDS, RULES
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from pathlib import Path

MONITORING = ("PodMonitor", "PrometheusRule")
ALL = {name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboards")}
MAX_CONFIG_MAP_BYTES = 1024 * 1024


@pytest.fixture(scope="module")
def helm() -> Path:
    return find_binaries(["helm"], None, print)["helm"]


def render(helm: Path, **values: Any) -> list[dict[str, Any]]:
    """Our objects out of ``helm template``."""
    done = subprocess.run(
        [helm, "template", "terrace", CHART, "-n", "terrace-system", "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    return [each for each in found if each["kind"] in MONITORING or is_dashboard(each)]


def is_dashboard(manifest: dict[str, Any]) -> bool:
    return manifest["kind"] == "ConfigMap" and "-dashboard-" in manifest["metadata"]["name"]


def test_nothing_of_it_is_made_by_default(helm: Path) -> None:
    assert render(helm) == []


def test_every_rule_file_becomes_a_prometheusrule_as_it_is(helm: Path) -> None:
    made = [each for each in render(helm, metrics=ALL) if each["kind"] == "PrometheusRule"]
    assert [each["spec"] for each in made] == [yaml.safe_load(path.read_text()) for path in RULES]


def test_every_dashboard_becomes_a_config_map_that_the_sidecar_finds(helm: Path) -> None:
    made = [each for each in render(helm, metrics=ALL) if each["kind"] == "ConfigMap"]
    assert [json.loads(text) for each in made for text in each["data"].values()] == [
        json.loads(path.read_text()) for path in DASHBOARDS
    ]
    for each in made:
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert sum(map(len, each["data"].values())) < MAX_CONFIG_MAP_BYTES


def test_replicas_are_looked_for_where_models_may_be(helm: Path) -> None:
    def places(**values: Any) -> dict[str, Any]:
        made = [
            each for each in render(helm, metrics=ALL, **values) if each["kind"] == "PodMonitor"
        ]
        return {each["metadata"]["name"]: each["spec"]["namespaceSelector"] for each in made}

    own = {"matchNames": ["terrace-system"]}
    machinery = {"terrace-operator": own, "terrace-gateway": own}
    assert places() == {**machinery, "terrace-runtime": {"any": True}}
    some = places(watchNamespaces=["a", "b"])
    assert some == {**machinery, "terrace-runtime": {"matchNames": ["a", "b"]}}


def test_labels_interval_and_annotations_are_the_users(helm: Path) -> None:
    labels = {"release": "mine"}
    values = {
        "podMonitor": {"enabled": True, "labels": labels, "interval": "15s"},
        "prometheusRule": {"enabled": True, "labels": labels},
        "dashboards": {"enabled": True, "labels": labels, "annotations": {"folder": "Terrace"}},
    }
    for each in render(helm, metrics=values):
        assert each["metadata"]["labels"]["release"] == "mine"
        if each["kind"] == "PodMonitor":
            assert each["spec"]["podMetricsEndpoints"][0]["interval"] == "15s"
        if each["kind"] == "ConfigMap":
            assert each["metadata"]["annotations"] == {"folder": "Terrace"}
