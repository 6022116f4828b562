"""Each value of the chart changes what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from chart.rendering import CHART, container, kinds, one, pod
from terrace import __version__
from terrace.controller.config import accelerator_table, config_from_env
from terrace.gateway.__main__ import make_parser

if TYPE_CHECKING:
    from chart.rendering import Helm, Manifest

COMPONENTS = ("operator", "gateway")


def test_the_charts_versions_are_the_programs() -> None:
    for folder in (CHART, CHART / "charts/crds"):
        chart = yaml.safe_load((folder / "Chart.yaml").read_text())
        assert chart["version"] == chart["appVersion"] == __version__
    (needed,) = yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"]
    assert needed["version"] == __version__


def test_the_gateway_knows_every_argument_it_is_given(helm: Helm) -> None:
    given = container(
        helm.render(gateway={"maxRequests": 5, "maxBodyMiB": 3, "drainTimeoutSeconds": 7}),
        "gateway",
    )["args"]
    assert given[0] == "--host=$(POD_IP)"
    options = make_parser().parse_args(given)
    assert (options.max_requests, options.max_body_mib, options.drain_timeout) == (5, 3, 7)


def test_pods_get_more_time_to_end_than_the_drain_takes(helm: Helm) -> None:
    manifests = helm.render(gateway={"drainTimeoutSeconds": 7})
    assert pod(manifests, "gateway")["spec"]["terminationGracePeriodSeconds"] > 7 + 3


def test_images_come_from_registry_repository_and_tag_or_digest(helm: Helm) -> None:
    assert container(helm.render(), "gateway")["image"] == f"terrace/gateway:{__version__}"
    digest = "sha256:" + "a" * 64
    manifests = helm.render(
        image={
            "registry": "registry.example:5000/x",
            "tag": "v9",
            "pullSecrets": ["s"],
            "pullPolicy": "Always",
        },
        gateway={"digest": digest},
        operator={"repository": "mine/operator"},
    )
    operator = container(manifests, "operator")
    assert operator["image"] == "registry.example:5000/x/mine/operator:v9"
    assert operator["imagePullPolicy"] == "Always"
    assert container(manifests, "gateway")["image"].endswith(f"/terrace/gateway@{digest}")
    runtime = {
        "name": "TERRACE_RUNTIME_IMAGE",
        "value": "registry.example:5000/x/terrace/runtime:v9",
    }
    assert runtime in operator["env"]
    for component in COMPONENTS:
        assert pod(manifests, component)["spec"]["imagePullSecrets"] == [{"name": "s"}]


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        ({}, "http://terrace-gateway.terrace-system.svc/v1"),
        ({"service": {"port": 8000}}, "http://terrace-gateway.terrace-system.svc:8000/v1"),
        ({"url": "https://models.example/v1"}, "https://models.example/v1"),
    ],
)
def test_models_show_the_address_of_the_gateway(helm: Helm, gateway: Manifest, url: str) -> None:
    env = container(helm.render(gateway=gateway), "operator")["env"]
    assert {"name": "TERRACE_GATEWAY_URL", "value": url} in env
    assert url in helm.notes(gateway=gateway)


def test_the_service_is_as_wanted(helm: Helm) -> None:
    wanted = {"type": "LoadBalancer", "port": 81, "annotations": {"a": "b"}}
    service = one(helm.render(gateway={"service": wanted}), "Service", "terrace-gateway")
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["ports"][0]["port"] == 81
    assert service["metadata"]["annotations"] == {"a": "b"}


def test_rows_of_accelerators_and_images_reach_the_operator_as_it_reads_them(helm: Helm) -> None:
    rows = {"accelerators": [{"name": "mine", "extends": "metax", "backend": "cuda"}]}
    images = {"cuda": "registry.example/runtime:1.0-cuda"}
    manifests = helm.render(
        accelerators=rows, runtime={"images": images}, operator={"pendingSeconds": 60}
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
    assert "terrace.dev/accelerators" in pod(manifests, "operator")["metadata"]["annotations"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_several_replicas_have_a_disruption_budget_and_spread(helm: Helm, component: str) -> None:
    alone = helm.render()
    assert "PodDisruptionBudget" not in kinds(alone)
    assert "topologySpreadConstraints" not in pod(alone, component)["spec"]
    manifests = helm.render(**{component: {"replicas": 3}})
    assert one(manifests, "Deployment", f"terrace-{component}")["spec"]["replicas"] == 3
    budget = one(manifests, "PodDisruptionBudget", f"terrace-{component}")["spec"]
    labels = pod(manifests, component)["metadata"]["labels"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    (spread,) = pod(manifests, component)["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == budget["selector"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


@pytest.mark.parametrize("component", COMPONENTS)
def test_spread_of_the_users_own_selects_our_pods_unless_it_says_whom(
    helm: Helm, component: str
) -> None:
    zone = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    theirs = zone | {"labelSelector": {"matchLabels": {"x": "y"}}}
    manifests = helm.render(**{component: {"topologySpreadConstraints": [zone, theirs]}})
    ours, kept = pod(manifests, component)["spec"]["topologySpreadConstraints"]
    assert kept == theirs
    deployment = one(manifests, "Deployment", f"terrace-{component}")
    assert ours == zone | {"labelSelector": deployment["spec"]["selector"]}


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_are_placed_labelled_and_told_as_wanted(helm: Helm, component: str) -> None:
    placed: Manifest = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"podAffinity": {}},
        "priorityClassName": "high",
    }
    manifests = helm.render(
        **{
            component: {
                **placed,
                "podLabels": {"team": "ml"},
                "podAnnotations": {"note": "x"},
                "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:1"}],
                "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}},
            }
        }
    )
    made = pod(manifests, component)
    assert placed.items() <= made["spec"].items()
    assert made["metadata"]["labels"]["team"] == "ml"
    assert made["metadata"]["annotations"] == {"note": "x"}
    inside = container(manifests, component)
    assert inside["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy:1"}
    assert inside["resources"]["requests"]["cpu"] == "1"
    assert inside["resources"]["limits"] == {"memory": "2Gi"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_variable_of_the_charts_own_is_not_set_twice(helm: Helm, component: str) -> None:
    refusal = helm.refusal(**{component: {"extraEnv": [{"name": "POD_IP", "value": "x"}]}})
    assert f"{component}.extraEnv: the chart itself sets POD_IP" in refusal
    twice = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    assert "A" in helm.refusal(**{component: {"extraEnv": twice}})


def test_labels_for_all_are_on_everything_and_in_no_selector(helm: Helm) -> None:
    manifests = helm.render(
        commonLabels={"cost": "center"},
        watchNamespaces=["a"],
        networkPolicy={"enabled": True},
        priorityClass={"create": True},
        gateway={"replicas": 2},
        accelerators={"accelerators": []},
    )
    ours = [m for m in manifests if m["kind"] != "CustomResourceDefinition"]
    assert [m for m in ours if m["metadata"]["labels"].get("cost") != "center"] == []
    for component in COMPONENTS:
        deployment = one(manifests, "Deployment", f"terrace-{component}")
        assert "cost" not in deployment["spec"]["selector"]["matchLabels"]
        assert deployment["spec"]["template"]["metadata"]["labels"]["cost"] == "center"


def test_the_priority_class_is_made_when_wanted_and_used_where_no_other_is_named(
    helm: Helm,
) -> None:
    assert "PriorityClass" not in kinds(helm.render())
    manifests = helm.render(
        priorityClass={"create": True, "value": 7}, gateway={"priorityClassName": "theirs"}
    )
    assert one(manifests, "PriorityClass", "terrace-control")["value"] == 7
    assert pod(manifests, "operator")["spec"]["priorityClassName"] == "terrace-control"
    assert pod(manifests, "gateway")["spec"]["priorityClassName"] == "theirs"


@pytest.mark.parametrize("component", COMPONENTS)
def test_programs_are_started_by_the_images_and_have_memory_limits(
    helm: Helm, component: str
) -> None:
    made: dict[str, Any] = container(helm.render(), component)
    assert "command" not in made
    assert "memory" in made["resources"]["limits"]
    assert {"readinessProbe", "livenessProbe"} <= set(made)


def test_what_other_operators_read_is_not_there_unless_wanted(helm: Helm) -> None:
    assert not kinds(helm.render()) & {"PodMonitor", "PrometheusRule", "ConfigMap"}


def test_the_notes_say_what_to_do_next(helm: Helm) -> None:
    out = helm.notes()
    assert "kubectl apply -f examples/01-minimal/" in out
    assert "kubectl wait --for=condition=Ready inferencemodel/demo" in out
    assert "service/terrace-gateway 8080:80" in out
