"""A Prometheus on the loopback that scrapes as the Prometheus operator would have it.

Owns: the scrape configuration out of PodMonitors, the process, its HTTP API. Does not own: what is
asked of it (``test_run.py``).
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from observability.tools import RULES, program
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]
INTERVAL = "2s"


def scrape_config(monitor: Json, pods: list[Json]) -> Json:
    """What the Prometheus operator makes of a PodMonitor, with the targets that are there now.

    Source: ``generatePodMonitorConfig`` in the Prometheus operator's ``pkg/prometheus/promcfg.go``,
    as far as ours go. Debian's Prometheus is built without discovery in Kubernetes: ``targets``
    does that part, everything after it is Prometheus' own.
    """
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    metadata, spec = monitor["metadata"], monitor["spec"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    names = spec["namespaceSelector"].get("matchNames")
    found = [pod for pod in pods if names is None or pod["metadata"]["namespace"] in names]
    labels = spec["selector"]["matchLabels"].items()
    return {
        "job_name": f"podMonitor/{name}/0",
        "scrape_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
        "metrics_path": endpoint["path"],
        "static_configs": [target for pod in found for target in targets(pod)],
        "relabel_configs": [
            {
                "action": "drop",
                "source_labels": ["__meta_kubernetes_pod_phase"],
                "regex": "(Failed|Succeeded)",
            },
            *(_keep(f"pod_label_{_label(label)}", value) for label, value in labels),
            _keep("pod_container_port_name", endpoint["port"]),
            _copy("namespace", "namespace"),
            _copy("pod_container_name", "container"),
            _copy("pod_name", "pod"),
            {"target_label": "job", "replacement": name},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *(
                {_snake(key): value for key, value in one.items()}
                for one in endpoint["relabelings"]
            ),
        ],
    }


def targets(pod: Json) -> list[Json]:
    """What discovery with the role ``pod`` tells of a pod: a target per port of its containers."""
    metadata, status = pod["metadata"], pod["status"]
    about = {
        "namespace": metadata["namespace"],
        "pod_name": metadata["name"],
        "pod_phase": status["phase"],
        **{f"pod_label_{_label(k)}": v for k, v in metadata.get("labels", {}).items()},
        **{f"pod_labelpresent_{_label(k)}": "true" for k in metadata.get("labels", {})},
    }
    found = []
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", []):
            more = {
                **about,
                "pod_container_name": container["name"],
                "pod_container_port_name": port["name"],
            }
            labels = {f"__meta_kubernetes_{name}": value for name, value in more.items()}
            address = f"{status.get('podIP', '')}:{port['containerPort']}"
            found.append({"targets": [address], "labels": labels})
    return found


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        """The ``data`` of an answer."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {json.load(error)['error']}") from error

    def values(self, query: str) -> list[float]:
        """The values of an instant query, NaN too."""
        found = self.get("query", query=query)
        return [float(sample["value"][1]) for sample in found["result"]]

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=60):
                return True
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running(
    folder: Path, monitors: list[Json], pods: list[Json], host: str
) -> Iterator[Prometheus]:
    """Prometheus on port 9090 of an address that nobody else has."""
    config = folder / "prometheus.yml"
    content = {
        "global": {"evaluation_interval": INTERVAL},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [scrape_config(each, pods) for each in monitors],
    }
    config.write_text(yaml.safe_dump(content))
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={host}:9090",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as out, subprocess.Popen(command, stderr=out, cwd=folder) as process:
        try:
            prometheus = Prometheus(f"http://{host}:9090")
            wait_for("Prometheus is ready", lambda: _is_ready(process, prometheus, log))
            yield prometheus
        finally:
            process.kill()


def _is_ready(process: subprocess.Popen[bytes], prometheus: Prometheus, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return prometheus.is_up()


def _keep(source: str, value: str) -> Json:
    return {
        "action": "keep",
        "source_labels": [f"__meta_kubernetes_{source}"],
        "regex": re.escape(value),
    }


def _copy(source: str, label: str) -> Json:
    return {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}


def _label(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: f"_{found[1].lower()}", name)
