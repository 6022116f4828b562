"""The chart as helm renders it and as a real API server takes it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from terrace import __version__
from terrace.api import names
from terrace.controller.config import accelerator_table, config_from_env
from terrace.controller.rbac import CLUSTER_RULES, NAMESPACE_RULES
from terrace.gateway.__main__ import make_parser
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from terrace.local.cluster import LocalCluster

CHART = Path(__file__).parents[2] / "charts/terrace"
NAMESPACE = "terrace-system"
Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def helm() -> Path:
    return find_binaries(["helm"], None, print)["helm"]


def run(helm: Path, *args: str, values: Mapping[str, Any] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(helm), *args, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def render(helm: Path, **values: Any) -> list[Manifest]:
    code, out, err = run(helm, "template", "terrace", str(CHART), "-n", NAMESPACE, values=values)
    assert code == 0, err
    return [each for each in yaml.safe_load_all(out) if each]


def one(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def container(manifests: Iterable[Manifest], component: str) -> Manifest:
    deployment = one(manifests, "Deployment", f"terrace-{component}")
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def rights(rules: Iterable[Mapping[str, Any]]) -> set[tuple[str, str, str, str]]:
    """(group, resource, name or *, verb) of each right."""
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        for verb in rule["verbs"]
    }


def granted(manifests: Sequence[Manifest], account: str, kind: str, namespace: str | None) -> Any:
    """The rights that bindings of this kind and namespace give to an account."""
    found: set[tuple[str, str, str, str]] = set()
    for binding in manifests:
        if binding["kind"] == f"{kind}Binding" and any(
            subject["name"] == account and subject["namespace"] == NAMESPACE
            for subject in binding["subjects"]
        ):
            if binding["metadata"].get("namespace") != namespace:
                continue
            roles = [
                m
                for m in manifests
                if m["kind"] == kind
                and m["metadata"]["name"] == binding["roleRef"]["name"]
                and m["metadata"].get("namespace") == namespace
            ]
            found |= rights(roles[0]["rules"])
    return found


NODES = {right for right in rights(CLUSTER_RULES) if right[1] == "nodes"}
WATCHED = rights(CLUSTER_RULES) - NODES
GATEWAY = {
    (group, resource, "*", verb)
    for group, resource in (("", "pods"), (names.GROUP, names.MODEL_PLURAL))
    for verb in ("list", "watch")
}


def test_helm_finds_nothing_wrong(helm: Path) -> None:
    code, out, err = run(helm, "lint", "--strict", str(CHART))
    assert code == 0, out + err


def test_the_charts_versions_are_the_programs(helm: Path) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_operator_has_exactly_the_rights_it_uses(helm: Path) -> None:
    manifests = render(helm)
    assert granted(manifests, "terrace-operator", "ClusterRole", None) == rights(CLUSTER_RULES)
    own = granted(manifests, "terrace-operator", "Role", NAMESPACE)
    assert own == rights(NAMESPACE_RULES)


def test_the_gateway_may_list_and_watch_and_nothing_else(helm: Path) -> None:
    assert granted(render(helm), "terrace-gateway", "ClusterRole", None) == GATEWAY


def test_with_named_namespaces_no_right_reaches_beyond_them_but_nodes(helm: Path) -> None:
    manifests = render(helm, watchNamespaces=["a", "b"])
    for namespace in ("a", "b"):
        assert granted(manifests, "terrace-operator", "Role", namespace) == WATCHED
        assert granted(manifests, "terrace-gateway", "Role", namespace) == GATEWAY
    assert granted(manifests, "terrace-operator", "ClusterRole", None) == NODES
    assert granted(manifests, "terrace-gateway", "ClusterRole", None) == set()
    for component in ("operator", "gateway"):
        assert {"name": "TERRACE_WATCH_NAMESPACES", "value": "a,b"} in container(
            manifests, component
        )["env"]


def test_the_gateway_knows_every_argument_it_is_given(helm: Path) -> None:
    given = container(
        render(helm, gateway={"maxRequests": 5, "maxBodyMiB": 3, "drainTimeoutSeconds": 7}),
        "gateway",
    )["args"]
    assert given[0] == "--host=$(POD_IP)"
    options = make_parser().parse_args(given)
    assert (options.max_requests, options.max_body_mib, options.drain_timeout) == (5, 3, 7)


def test_pods_get_more_time_to_end_than_the_drain_takes(helm: Path) -> None:
    manifests = render(helm, gateway={"drainTimeoutSeconds": 7})
    spec = one(manifests, "Deployment", "terrace-gateway")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > 7 + 3


def test_images_come_from_registry_repository_and_tag_or_digest(helm: Path) -> None:
    assert container(render(helm), "gateway")["image"] == f"terrace/gateway:{__version__}"
    digest = "sha256:" + "a" * 64
    manifests = render(
        helm,
        image={"registry": "registry.example:5000/x", "tag": "v9", "pullSecrets": ["s"]},
        gateway={"digest": digest},
    )
    assert (
        container(manifests, "operator")["image"] == "registry.example:5000/x/terrace/operator:v9"
    )
    assert container(manifests, "gateway")["image"].endswith(f"/terrace/gateway@{digest}")
    runtime = {
        "name": "TERRACE_RUNTIME_IMAGE",
        "value": "registry.example:5000/x/terrace/runtime:v9",
    }
    assert runtime in container(manifests, "operator")["env"]
    pod = one(manifests, "Deployment", "terrace-gateway")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "s"}]


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        ({}, "http://terrace-gateway.terrace-system.svc/v1"),
        ({"service": {"port": 8000}}, "http://terrace-gateway.terrace-system.svc:8000/v1"),
        ({"url": "https://models.example/v1"}, "https://models.example/v1"),
    ],
)
def test_models_show_the_address_of_the_gateway(helm: Path, gateway: Manifest, url: str) -> None:
    env = container(render(helm, gateway=gateway), "operator")["env"]
    assert {"name": "TERRACE_GATEWAY_URL", "value": url} in env


def test_rows_of_accelerators_and_images_reach_the_operator_as_it_reads_them(helm: Path) -> None:
    rows = {"accelerators": [{"name": "mine", "extends": "metax", "backend": "cuda"}]}
    images = {"cuda": "registry.example/runtime:1.0-cuda"}
    manifests = render(
        helm, accelerators=rows, runtime={"images": images}, operator={"pendingSeconds": 60}
    )
    operator = container(manifests, "operator")
    env = dict.fromkeys(("POD_NAME", "POD_NAMESPACE", "POD_IP"), "x")
    env = {each["name"]: each.get("value", "x") for each in operator["env"]} | env
    config = config_from_env(env)
    text = one(manifests, "ConfigMap", "terrace-operator-accelerators")["data"]
    (mount,) = operator["volumeMounts"]
    assert [config.accelerators] == [f"{mount['mountPath']}/{name}" for name in text]
    assert accelerator_table(config, *text.values()).accelerators["mine"].backend == "cuda"
    assert config.runtime_images == images
    assert config.pending_s == 60
    template = one(manifests, "Deployment", "terrace-operator")["spec"]["template"]
    assert "terrace.dev/accelerators" in template["metadata"]["annotations"]


def test_several_gateways_have_a_disruption_budget_and_spread(helm: Path) -> None:
    assert not [m for m in render(helm) if m["kind"] == "PodDisruptionBudget"]
    manifests = render(helm, gateway={"replicas": 3})
    budget = one(manifests, "PodDisruptionBudget", "terrace-gateway")
    deployment = one(manifests, "Deployment", "terrace-gateway")
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]


def test_programs_are_started_by_the_images_and_have_memory_limits(helm: Path) -> None:
    for component in ("operator", "gateway"):
        made = container(render(helm), component)
        assert "command" not in made
        assert "memory" in made["resources"]["limits"]
        assert {"readinessProbe", "livenessProbe"} <= set(made)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gatway": {}}, "gatway"),
        ({"gateway": {"replicas": "two"}}, "replicas"),
        ({"gateway": {"maxBodyMiB": 0}}, "maxBodyMiB"),
        ({"operator": {"digest": "abc"}}, "digest"),
        ({"image": {"registry": "x/"}}, "registry"),
        ({"watchNamespaces": ["Not_A_Name"]}, "watchNamespaces"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Path, values: Manifest, named: str) -> None:
    code, _, err = run(helm, "template", "terrace", str(CHART), values=values)
    assert code != 0
    assert named in err


def test_the_notes_say_what_to_do_next(helm: Path) -> None:
    code, out, err = run(helm, "install", "terrace", str(CHART), "--dry-run=client")
    assert code == 0, err
    assert "`helm uninstall` keeps them" in out
    assert "kubectl apply -f examples/01-minimal/" in out


def test_a_real_api_server_takes_it_all_under_the_restricted_standard(
    helm: Path, control_plane: LocalCluster
) -> None:
    level = {"pod-security.kubernetes.io/warn": "restricted"}
    metadata = {"name": "chart-test", "labels": level}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
    code, out, err = run(
        helm, "template", "chart-test", str(CHART), "-n", "chart-test",
        values={
            "crds": {"enabled": False},  # Other tests have put them there.
            "gateway": {"replicas": 2},
            "accelerators": {"accelerators": [{"name": "x"}]},
        },
    )  # fmt: skip
    assert code == 0, err
    command = control_plane.kubectl_command("apply", "--dry-run=server", "-f", "-")
    done = subprocess.run(command, input=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning of the pod security standard or of the API
    assert done.stdout.count("created (server dry run)") == len(
        [each for each in yaml.safe_load_all(out) if each]
    )
