"""Who may do what: the chart's roles against the rules that the operator's code names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chart.rendering import NAMESPACE, container, granted, kinds, one, rights
from terrace.api import names
from terrace.controller.rbac import CLUSTER_RULES, NAMESPACE_RULES

if TYPE_CHECKING:
    from chart.rendering import Helm

NODES = {right for right in rights(CLUSTER_RULES) if right[1] == "nodes"}
WATCHED = rights(CLUSTER_RULES) - NODES
GATEWAY = {
    (group, resource, "*", verb)
    for group, resource in (("", "pods"), (names.GROUP, names.MODEL_PLURAL))
    for verb in ("list", "watch")
}
CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PriorityClass",
    "Namespace",
}


def test_the_operator_has_exactly_the_rights_it_uses(helm: Helm) -> None:
    manifests = helm.render()
    assert granted(manifests, "terrace-operator", "ClusterRole", None) == rights(CLUSTER_RULES)
    own = granted(manifests, "terrace-operator", "Role", NAMESPACE)
    assert own == rights(NAMESPACE_RULES)


def test_the_gateway_may_list_and_watch_and_nothing_else(helm: Helm) -> None:
    assert granted(helm.render(), "terrace-gateway", "ClusterRole", None) == GATEWAY


def test_with_named_namespaces_no_right_reaches_beyond_them_but_nodes(helm: Helm) -> None:
    manifests = helm.render(watchNamespaces=["a", "b"])
    for namespace in ("a", "b"):
        assert granted(manifests, "terrace-operator", "Role", namespace) == WATCHED
        assert granted(manifests, "terrace-gateway", "Role", namespace) == GATEWAY
    assert granted(manifests, "terrace-operator", "ClusterRole", None) == NODES
    assert granted(manifests, "terrace-gateway", "ClusterRole", None) == set()
    for component in ("operator", "gateway"):
        assert {"name": "TERRACE_WATCH_NAMESPACES", "value": "a,b"} in container(
            manifests, component
        )["env"]


def test_nothing_of_a_namespaced_install_is_cluster_scoped(helm: Helm) -> None:
    manifests = helm.render(
        watchNamespaces=["a", NAMESPACE],
        aggregateRoles=False,
        nodeRole=False,
        crds={"enabled": False},
    )
    assert not kinds(manifests) & CLUSTER_SCOPED
    assert {m["metadata"]["namespace"] for m in manifests} == {"a", NAMESPACE}


def test_without_its_role_for_nodes_the_notes_say_what_an_administrator_does(helm: Helm) -> None:
    manifests = helm.render(nodeRole=False, watchNamespaces=["a"])
    assert granted(manifests, "terrace-operator", "ClusterRole", None) == set()
    notes = helm.notes(nodeRole=False)
    assert "--verb=list,watch --resource=nodes" in notes
    assert f"--serviceaccount={NAMESPACE}:terrace-operator" in notes
    assert "resource=nodes" not in helm.notes()


def test_users_get_rights_through_the_clusters_own_roles_unless_told_otherwise(helm: Helm) -> None:
    made = {m["metadata"]["name"] for m in helm.render() if m["kind"] == "ClusterRole"}
    left = helm.render(aggregateRoles=False)
    assert {"terrace-viewer", "terrace-editor"} <= made
    assert not {m["metadata"]["name"] for m in left} & {"terrace-viewer", "terrace-editor"}


def test_rights_go_to_the_account_that_exists_already(helm: Helm) -> None:
    account = {"create": False, "name": "mine"}
    manifests = helm.render(operator={"serviceAccount": account})
    assert granted(manifests, "mine", "ClusterRole", None) == rights(CLUSTER_RULES)
    assert granted(manifests, "terrace-operator", "ClusterRole", None) == set()
    pod = one(manifests, "Deployment", "terrace-operator")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "mine"
    accounts = [m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount"]
    assert accounts == ["terrace-gateway"]
    refusal = helm.refusal(operator={"serviceAccount": {"create": False}})
    assert "operator.serviceAccount.name: name the account to use" in refusal


def test_accounts_carry_the_annotations_of_a_cloud(helm: Helm) -> None:
    note = {"example.com/role": "reader"}
    manifests = helm.render(gateway={"serviceAccount": {"annotations": note, "name": "front"}})
    assert one(manifests, "ServiceAccount", "front")["metadata"]["annotations"] == note
