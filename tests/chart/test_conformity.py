"""What comes out of the chart is what Kubernetes takes: helm's lint, kubeconform, the API server.

kubeconform's schemas are made from the OpenAPI of a real API server. The stronger check is the last
one: that server's dry run, with its admission of the *restricted* pod security standard.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from chart.openapi_schemas import write_schemas
from chart.rendering import CHART, ROOT, run_helm
from support.waiting import wait_for
from terrace.api.pool import PoolSpec
from terrace.controller.jobs import prune_job

if TYPE_CHECKING:
    from pathlib import Path

    from chart.rendering import Helm, Manifest
    from terrace.local.cluster import LocalCluster

GOLDEN = ROOT / "tests/unit/controller/golden"
NAMESPACE = "terrace-system"
ALL: Manifest = {
    "watchNamespaces": ["default", NAMESPACE],
    "commonLabels": {"cost": "center"},
    "priorityClass": {"create": True},
    "networkPolicy": {
        "enabled": True,
        "clients": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
    },
    "accelerators": {"accelerators": [{"name": "x"}]},
    "runtime": {"images": {"cuda": "registry.example/runtime:cuda"}},
    "metrics": {"dashboards": {"enabled": True, "annotations": {"folder": "Terrace"}}},
    "image": {"pullSecrets": ["s"]},
    **{
        component: {
            "replicas": 2,
            "extraEnv": [
                {"name": "A", "value": "b"},
                {"name": "H", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            ],
            "serviceAccount": {"annotations": {"a": "b"}},
            "podLabels": {"team": "ml"},
            "podAnnotations": {"a": "b"},
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
            ],
        }
        for component in ("operator", "gateway")
    },
}
NAMESPACED: Manifest = {
    "watchNamespaces": ["default"],
    "crds": {"enabled": False},
    "aggregateRoles": False,
    "nodeRole": False,
}
CASES = {"defaults": {}, "all": ALL, "namespaced": NAMESPACED}
MONITORING: Manifest = {
    "metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}
}


@pytest.fixture(scope="module")
def schemas(api: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of schemas from this API server."""
    folder = tmp_path_factory.mktemp("schemas")
    assert write_schemas(json.loads(api.kubectl("get", "--raw", "/openapi/v2")), folder) > 100
    return folder


def conform(kubeconform: Path, schemas: Path, text: str) -> tuple[int, Manifest]:
    """Exit status and report."""
    command = [str(kubeconform), "-strict", "-summary", "-output", "json"]
    # Kinds of the Prometheus operator have no schema here; tests/observability looks at them.
    command += ["-skip", "PodMonitor,PrometheusRule"]
    command += ["-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=120
    )
    report: Manifest = json.loads(done.stdout)
    return done.returncode, report


@pytest.mark.parametrize("case", [*CASES, "monitoring"])
def test_lint_finds_nothing(helm: Helm, case: str) -> None:
    values = json.dumps(CASES.get(case, MONITORING))
    done = run_helm(helm.path, "lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", [*CASES, "monitoring"])
def test_kubeconform_finds_nothing(helm: Helm, kubeconform: Path, schemas: Path, case: str) -> None:
    text = helm.text(**CASES.get(case, MONITORING))
    code, report = conform(kubeconform, schemas, text)
    assert code == 0, report
    assert report["summary"]["invalid"] == report["summary"]["errors"] == 0
    assert report["summary"]["valid"] >= 10


def test_kubeconform_would_find_a_wrong_field(helm: Helm, kubeconform: Path, schemas: Path) -> None:
    text = helm.text().replace("maxUnavailable: 0", "maxUnavailble: 0")
    code, report = conform(kubeconform, schemas, text)
    assert code == 1
    assert "maxUnavailble" in json.dumps(report["resources"])


def restrict(api: LocalCluster, namespace: str) -> None:
    """Have the API server warn of every pod template below the *restricted* standard."""
    metadata = {"name": namespace, "labels": {"pod-security.kubernetes.io/warn": "restricted"}}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    api.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    wait_for(
        "the namespace's account",
        lambda: api.kubectl(
            "get", "serviceaccount", "default", "-n", namespace, "--ignore-not-found"
        ),
    )


def dry_run(api: LocalCluster, text: str) -> subprocess.CompletedProcess[str]:
    """What the API server says, without storing anything."""
    command = api.kubectl_command("apply", "--dry-run=server", "-f", "-")
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=120
    )


def assert_taken(api: LocalCluster, text: str) -> None:
    """Without a warning of the pod security standard or of the API."""
    done = dry_run(api, text)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    wanted = [each for each in yaml.safe_load_all(text) if each]
    assert done.stdout.count("created (server dry run)") == len(wanted)


@pytest.mark.parametrize("case", list(CASES))
def test_a_real_api_server_takes_it_under_the_restricted_standard(
    helm: Helm, api: LocalCluster, case: str
) -> None:
    restrict(api, NAMESPACE)
    assert_taken(api, helm.text(**CASES[case]))


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_the_operator_makes_is_restricted_as_well(api: LocalCluster, golden: Path) -> None:
    restrict(api, "default")
    assert_taken(api, golden.read_text())


def test_so_is_the_job_that_deletes_files_and_the_standard_is_looked_at(api: LocalCluster) -> None:
    restrict(api, "default")
    owner = {"metadata": {"name": "default", "namespace": "default", "uid": "x"}}
    pool = PoolSpec.model_validate({"flavors": [{"name": "cpu"}]})
    job = prune_job(owner, pool, ("a" * 64,), "terrace/runtime:0")
    assert_taken(api, yaml.safe_dump(job))
    del job["spec"]["template"]["spec"]["securityContext"]
    assert "would violate PodSecurity" in dry_run(api, yaml.safe_dump(job)).stderr
