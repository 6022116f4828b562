"""A real Prometheus scrapes a real run, and every panel of every dashboard shows something."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml

from observability import foreign_kinds, prometheus
from observability.registries import all_families, families
from observability.tools import CHART, DASHBOARDS, alerts, dashboard, expressions, panels, promtool
from support.chain import ROOT, Chain, model
from support.clusters import cluster_name
from support.waiting import wait_for
from terrace.cli.demo import NAMESPACE, install
from terrace.local.cluster import LocalCluster
from terrace.local.errors import LocalClusterError
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from observability.prometheus import Json, Prometheus

pytestmark = pytest.mark.timeout(900)

DRIVER = ROOT / "tests/support/nvml_library.c"
OFFLOAD = {"spillThreshold": "64Mi", "maxDisk": "256Mi", "kvBlockTokens": 32}
VARIABLES = {
    "$__rate_interval": "1m",
    "$datasource": "",
    "$namespace": "default",
    "$model": "default/demo",
    "$pod": ".*",
}
MAY_BE_EMPTY: Mapping[tuple[str, str], str] = {
    ("model", "Download"): "the demo model ships in the image, nothing is downloaded",
    ("runtime", "CPU taken away"): "the host node gives its processes no CPU quota",
    ("runtime", "Memory of the container"): "the control group of this machine may tell nothing",
    ("runtime", "Pressure"): "kernels without PSI tell nothing",
}
METRIC = r"(?<![\w:])terrace_\w+"
FIRES_BY_DESIGN = "TerraceDevice"
"""The fixture's device is hot and full; the model ``default/lost`` has no pool."""
QUESTIONS = ("What is a pod?", "What is a node?", "What is gguf?")


@dataclass(frozen=True)
class Run:
    """The system, and the Prometheus that looks at it."""

    chain: Chain
    prometheus: Prometheus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One model that serves with all tiers and a device, one without a pool, and users."""
    folder = tmp_path_factory.mktemp("observability")
    options = ClusterOptions(fsync=False, images=str(images_with_a_device(folder)))
    cluster = LocalCluster(
        cluster_name("observability"), directory=folder / "cluster", options=options
    )
    cluster.up()
    try:
        chain = Chain(cluster)
        install(cluster, ROOT)
        cluster.kubectl("apply", "-f", str(ROOT / "examples/01-minimal/1-pool.yaml"))
        chain.apply(model("demo", offload=OFFLOAD), model("lost", poolRef={"name": "none"}))
        chain.wait_condition("demo", "Ready", "True", timeout=180)
        host = urlsplit(chain.url).hostname or ""
        address = re.sub(r"\.\d+\.\d+$", ".0.9", host)  # In the cluster's own loopback block.
        with (
            prometheus.running(folder, pod_monitors(cluster), all_pods(chain), address) as looks,
            users(chain),
        ):
            yield Run(chain, looks)
    finally:
        cluster.down()


def images_with_a_device(folder: Path) -> Path:
    """An image map whose runtime finds the driver of an H100."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, DRIVER], check=True)
    python = [sys.executable, "-m", "terrace_runtime"]
    images = folder / "images.json"
    command = ["/usr/bin/env", f"LD_LIBRARY_PATH={folder}", "TERRACE_NVML=h100", *python]
    images.write_text(json.dumps({"terrace/runtime": command}))
    return images


def monitoring(cluster: LocalCluster) -> list[Json]:
    """PodMonitors and PrometheusRules as the chart renders them."""
    switches = "metrics.podMonitor.enabled=true,metrics.prometheusRule.enabled=true"
    text = cluster.tools.helm("template", "terrace", str(CHART), "-n", NAMESPACE, "--set", switches)
    kinds = ("PodMonitor", "PrometheusRule")
    return [each for each in yaml.safe_load_all(text) if each and each["kind"] in kinds]


def pod_monitors(cluster: LocalCluster) -> list[Json]:
    """What is to be scraped."""
    return [each for each in monitoring(cluster) if each["kind"] == "PodMonitor"]


def all_pods(chain: Chain) -> list[Json]:
    """Every pod of the cluster."""
    found: list[Json] = json.loads(chain.cluster.kubectl("get", "pods", "-A", "-o", "json"))[
        "items"
    ]
    return found


def use_once(chain: Chain, url: str, number: int) -> None:
    """One request, and now and then a change that has the operator look again."""
    if number % 10 == 0:
        chain.cluster.kubectl("annotate", "im", "lost", f"touched={number}", "--overwrite")
    body = {
        "model": "nobody" if number % 5 == 0 else "demo",
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": 8,
        "stream": number % 2 == 0,
    }
    httpx2.post(f"{url}/chat/completions", json=body, timeout=60).read()


@contextmanager
def users(chain: Chain) -> Iterator[None]:
    """Ask all the time, streamed and not, some for a model that is not there; touch a resource."""
    stop, url = threading.Event(), chain.url

    def use() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            with suppress(httpx2.HTTPError, LocalClusterError):  # Users try again.
                use_once(chain, url, number)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def substituted(query: str) -> str:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def has_series(run: Run, query: str) -> bool:
    """Whether anything tells a metric of the query: an excuse holds only while nothing does."""
    return any(run.prometheus.values(f"count({name})") for name in re.findall(METRIC, query))


def is_about(alert: Json, name: str) -> bool:
    return bool(alert["labels"].get("model") == name)


def is_shown(run: Run, query: str) -> bool:
    """Whether a panel has a number to draw."""
    return any(map(math.isfinite, run.prometheus.values(query)))


def test_prometheus_finds_all_three_and_every_scrape_succeeds(run: Run) -> None:
    def jobs() -> dict[str, str]:
        targets = run.prometheus.get("targets", state="active")["activeTargets"]
        return {each["labels"]["job"]: each["health"] for each in targets}

    wanted = dict.fromkeys(("terrace-operator", "terrace-gateway", "terrace-runtime"), "up")
    wait_for("three healthy targets", lambda: jobs() == wanted)
    (replica,) = (
        each["labels"]
        for each in run.prometheus.get("targets", state="active")["activeTargets"]
        if each["labels"]["job"] == "terrace-runtime"
    )
    assert (replica["namespace"], replica["pod"]) == ("default", "demo-cpu-0")
    assert replica["model"] == "default/demo"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(run: Run, path: Path) -> None:
    """Every query of it, with the variables filled in."""
    wanted = {
        (panel["title"], substituted(target["expr"]))
        for panel in panels(dashboard(path))
        for target in panel["targets"]
    }
    for _, query in wanted:
        run.prometheus.values(query)  # Prometheus takes it, whether or not it finds something.
    excused = {each for each in wanted if (path.stem, each[0]) in MAY_BE_EMPTY}
    left = wanted - {each for each in excused if not has_series(run, each[1])}

    def all_shown() -> bool:
        left.difference_update({each for each in left if is_shown(run, each[1])})
        return not left

    try:
        wait_for("every panel has data", all_shown, timeout=180, every=1)
    except AssertionError:
        pytest.fail(f"{path.stem}: nothing to show for {sorted(left)}")


def test_every_variable_has_values(run: Run) -> None:
    for path in DASHBOARDS:
        for variable in dashboard(path)["templating"]["list"][1:]:
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert found, variable
            place, match = f"label/{found[2]}/values", {"match[]": substituted(found[1])}
            values = wait_for(
                f"values of {variable['name']} in {path.stem}",
                partial(run.prometheus.get, place, **match),
            )
            if variable["name"] == "namespace":
                pattern = variable["regex"][1:-1]  # Between the slashes that Grafana wants.
                matches = [re.match(pattern, value) for value in values]
                assert {each and each[1] for each in matches} == {"default"}


def test_every_rule_is_evaluated_and_only_the_lost_model_worries(run: Run) -> None:
    def rules() -> list[Json]:
        groups = run.prometheus.get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_for("all rules were evaluated", lambda: all(r["health"] != "unknown" for r in rules()))
    assert [rule["name"] for rule in rules() if rule["health"] != "ok"] == []
    assert {rule["name"] for rule in rules() if rule["type"] == "alerting"} == set(alerts())

    def worries() -> set[str]:
        seen = run.prometheus.get("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in seen if is_about(each, "default/lost")}

    wanted = {"TerraceModelNotAvailable", "TerraceModelNotPlaced"}
    wait_for("the lost model worries", lambda: worries() >= wanted)
    alerts_now = run.prometheus.get("alerts")["alerts"]
    firing = [each for each in alerts_now if each["state"] == "firing"]
    assert [
        each
        for each in firing
        if not is_about(each, "default/lost")
        and not each["labels"]["alertname"].startswith(FIRES_BY_DESIGN)
    ] == []


def test_what_is_really_scraped_is_what_the_registries_say(run: Run) -> None:
    known = all_families()
    for target in run.prometheus.get("targets", state="active")["activeTargets"]:
        with urllib.request.urlopen(target["scrapeUrl"], timeout=30) as answer:
            text = answer.read().decode()
        own = "".join(f"{line}\n" for line in text.splitlines() if "vllm:" not in line)
        assert promtool("check", "metrics", text=own).strip() == ""
        for name, family in families(text).items():
            assert name in known, f"{name} is missing in registries.py"
            assert family.kind == known[name].kind
            assert family.labels <= known[name].labels, name


def test_the_api_server_takes_monitors_and_rules_as_they_are(run: Run, tmp_path: Path) -> None:
    kubectl = run.chain.cluster.kubectl
    files = [part for crd in foreign_kinds.crds(tmp_path) for part in ("-f", str(crd))]
    kubectl("apply", "--server-side", *files)
    kubectl("wait", "--for=condition=Established", "--timeout=60s", *files, timeout_s=80)
    manifests = monitoring(run.chain.cluster)
    text = yaml.safe_dump_all(manifests)
    said = kubectl(
        "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", stdin=text
    )
    assert said.count("serverside-applied") == len(manifests) == 8


def test_no_panel_is_excused_that_does_not_exist() -> None:
    titles = {
        (path.stem, panel["title"]) for path in DASHBOARDS for panel in panels(dashboard(path))
    }
    assert set(MAY_BE_EMPTY) <= titles
    assert sum(len(expressions(dashboard(path))) for path in DASHBOARDS) > 100
