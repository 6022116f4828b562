"""What the API server and the cluster's DNS may do on real nodes, as manifests. Pure."""

from __future__ import annotations

from typing import Any

_GROUP = "rbac.authorization.k8s.io"


def bootstrap_manifests() -> list[dict[str, Any]]:
    """Everything to apply before kubelets and CoreDNS start; safe to apply again."""
    return [
        # kubelet asks the API server whether the API server may read logs.
        _binding(
            "terrace-kubelet-api", "system:kubelet-api-admin", "kube-apiserver-kubelet-client"
        ),
        {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                _readable("", "services", "pods", "namespaces"),
                _readable("discovery.k8s.io", "endpointslices"),
            ],
        },
        _binding("system:coredns", "system:coredns", "system:coredns"),
    ]


def _readable(group: str, *resources: str) -> dict[str, Any]:
    return {
        "apiGroups": [group],
        "resources": list(resources),
        "verbs": ["get", "list", "watch"],
    }


def _binding(name: str, role: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": _GROUP, "kind": "User", "name": user}],
    }
