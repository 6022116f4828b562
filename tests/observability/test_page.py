"""docs/observability.md: its scrape configuration and its tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from observability.prometheus import targets
from observability.tools import DASHBOARDS, ROOT, alerts, promtool

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (ROOT / "docs/observability.md").read_text()


def test_prometheus_takes_the_configuration_on_the_page(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    config = yaml.safe_load(block)
    (job,) = config["scrape_configs"]
    # Debian's promtool is built without discovery in Kubernetes.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    promtool("check", "config", str(file))
    labels = {
        "app.kubernetes.io/managed-by": "terrace",
        "app.kubernetes.io/component": "runtime",
        "terrace.dev/model": "demo",
    }
    container = {"name": "runtime", "ports": [{"name": "http", "containerPort": 8000}]}
    pod = {
        "metadata": {"name": "demo-cpu-0", "namespace": "default", "labels": labels},
        "spec": {"containers": [container]},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    }
    (target,) = targets(pod)
    read = {label for rule in job["relabel_configs"] for label in rule["source_labels"]}
    assert read <= set(target["labels"])


def test_the_tables_list_every_alert_with_its_severity_and_every_dashboard() -> None:
    listed = dict(re.findall(r"^\| `(Terrace\w+)` \| (\w+) \|", TEXT, re.MULTILINE))
    assert listed == {name: rule["labels"]["severity"] for name, rule in alerts().items()}
    shown = set(re.findall(r"^\| `(\w+\.json)` \|", TEXT, re.MULTILINE))
    assert shown == {path.name for path in DASHBOARDS}
