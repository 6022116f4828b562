"""The network policies let through what Terrace does, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from chart.peers import Peer, may_connect
from chart.rendering import NAMESPACE, container, kinds, one, pod
from terrace.controller.heads import common_labels, model_labels

if TYPE_CHECKING:
    from chart.rendering import Helm, Manifest

MODELS = "team-a"
GOLDEN = Path(__file__).parents[1] / "unit/controller/golden"
PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
CLIENT = Peer("team-b", {"app": "chat"})
HUB = Peer(address="203.0.113.7")
METADATA = Peer(address="169.254.169.254")


def peers(manifests: list[Manifest]) -> tuple[Peer, Peer]:
    """Operator and gateway as their Deployments make them."""
    return (of_deployment(manifests, "operator"), of_deployment(manifests, "gateway"))


def of_deployment(manifests: list[Manifest], component: str) -> Peer:
    ports = {
        each["name"]: each["containerPort"] for each in container(manifests, component)["ports"]
    }
    return Peer(NAMESPACE, pod(manifests, component)["metadata"]["labels"], ports)


def replica() -> Peer:
    """A replica as the operator makes it."""
    text = (GOLDEN / "01-minimal.yaml").read_text()
    (made,) = [m for m in yaml.safe_load_all(text) if m and m["kind"] == "StatefulSet"]
    template = made["spec"]["template"]
    (inside,) = template["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in inside["ports"]}
    return Peer(MODELS, template["metadata"]["labels"], ports)


FETCH = Peer(MODELS, model_labels("demo", "default", "fetch"))
PRUNE = Peer(MODELS, common_labels("prune"))


def policies(helm: Helm, **values: object) -> tuple[list[Manifest], list[Manifest]]:
    """The policies, and everything."""
    wanted = {"enabled": True, "namespaces": [MODELS], **values}
    manifests = helm.render(networkPolicy=wanted)
    return [m for m in manifests if m["kind"] == "NetworkPolicy"], manifests


def test_there_are_none_unless_wanted(helm: Helm) -> None:
    assert "NetworkPolicy" not in kinds(helm.render())


def test_replicas_answer_gateway_operator_and_monitoring_and_nobody_else(helm: Helm) -> None:
    made, manifests = policies(helm)
    operator, gateway = peers(manifests)
    runtime = replica()
    for friend in (operator, gateway, PROMETHEUS):
        assert may_connect(made, friend, runtime, 8000)
    impostor = Peer(CLIENT.namespace, gateway.labels)
    for stranger in (CLIENT, impostor, FETCH, replica(), HUB):
        assert not may_connect(made, stranger, runtime, 8000)
    assert not may_connect(made, gateway, runtime, 9000)


def test_replicas_connect_to_nothing(helm: Helm) -> None:
    made, manifests = policies(helm)
    for target in (HUB, METADATA, CLIENT, *peers(manifests)):
        assert not may_connect(made, replica(), target, 443)


def test_fetching_goes_anywhere_but_to_where_clouds_keep_credentials(helm: Helm) -> None:
    made, _ = policies(helm)
    assert may_connect(made, FETCH, HUB, 443)
    assert may_connect(made, FETCH, Peer(address="2001:db8::1"), 443)
    assert may_connect(made, FETCH, METADATA, 53)  # A name server on the node.
    for forbidden in (METADATA, Peer(address="fd00:ec2::254"), Peer(address="fe80::1")):
        assert not may_connect(made, FETCH, forbidden, 80)
    assert not may_connect(made, CLIENT, FETCH, 80)


def test_fetching_goes_where_it_may_and_nowhere_without_sources(helm: Helm) -> None:
    dns = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    mirror = Peer("mirror", {"app": "minio"}, address="10.1.1.1")
    only, _ = policies(
        helm, sources=[{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "minio"}}}]
    )
    assert may_connect(only, FETCH, mirror, 9000)
    assert not may_connect(only, FETCH, HUB, 443)
    nowhere, _ = policies(helm, sources=[], dns=[dns])
    assert not may_connect(nowhere, FETCH, HUB, 443)
    assert not may_connect(nowhere, FETCH, HUB, 53)
    assert may_connect(nowhere, FETCH, Peer("kube-system", {"k8s-app": "kube-dns"}), 53)


def test_deleting_files_needs_no_network(helm: Helm) -> None:
    made, manifests = policies(helm)
    for target in (HUB, replica(), *peers(manifests)):
        assert not may_connect(made, PRUNE, target, 53)


def test_anybody_reaches_the_gateway_unless_clients_are_named(helm: Helm) -> None:
    made, manifests = policies(helm)
    _, gateway = peers(manifests)
    assert may_connect(made, CLIENT, gateway, 8080)
    assert may_connect(made, HUB, gateway, 8080)
    clients = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-b"}}}]
    named, _ = policies(helm, clients=clients)
    assert may_connect(named, CLIENT, gateway, 8080)
    assert may_connect(named, PROMETHEUS, gateway, 8080)
    assert not may_connect(named, Peer("team-c"), gateway, 8080)


def test_the_operator_tells_its_metrics_to_monitoring_alone(helm: Helm) -> None:
    made, manifests = policies(helm)
    operator, gateway = peers(manifests)
    assert may_connect(made, PROMETHEUS, operator, 8080)
    assert not may_connect(made, gateway, operator, 8080)
    nobody, _ = policies(helm, monitoring=[])
    assert not may_connect(nobody, PROMETHEUS, operator, 8080)
    assert not may_connect(nobody, PROMETHEUS, replica(), 8000)


@pytest.mark.parametrize("watched", [[], [MODELS]])
def test_watched_namespaces_get_policies_of_their_own_accord(
    helm: Helm, watched: list[str]
) -> None:
    manifests = helm.render(watchNamespaces=watched, networkPolicy={"enabled": True})
    made = {m["metadata"]["namespace"] for m in manifests if m["kind"] == "NetworkPolicy"}
    assert made == {NAMESPACE, *watched}
    is_told = "have no network policy yet" in helm.notes(
        watchNamespaces=watched, networkPolicy={"enabled": True}
    )
    assert is_told == (not watched)


def test_policies_select_the_pods_of_this_release_alone(helm: Helm) -> None:
    made, manifests = policies(helm)
    for component in ("operator", "gateway"):
        selector = one(made, "NetworkPolicy", f"terrace-{component}")["spec"]["podSelector"]
        deployment = one(manifests, "Deployment", f"terrace-{component}")
        assert selector == deployment["spec"]["selector"]
