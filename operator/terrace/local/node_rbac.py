"""What the host node may do beyond the node authorizer, as manifests.

Owns: the ClusterRole of the agent and the StorageClass of its provisioner. LocalCluster applies
``bootstrap_manifests()`` when it comes up.

The agent has one identity, the node's certificate (``system:node:NAME``, group ``system:nodes``).
The node authorizer grants it its own Node, Lease and pods, the ConfigMaps, Secrets, claims and
volumes that those pods name, their tokens, and events. The provisioner in it needs the rest: to
see all claims and storage classes, and to make, grow and delete volumes.
"""

from __future__ import annotations

from typing import Any

from terrace.local.node_names import PROVISIONER, STORAGE_CLASS

ROLE = "terrace-host-node"
_VOLUME_VERBS = ("get", "list", "watch", "create", "patch", "delete")


def bootstrap_manifests() -> list[dict[str, Any]]:
    """Everything to apply before the agent starts; safe to apply again."""
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": ROLE},
            "rules": [
                _rule("", "persistentvolumeclaims", "get", "list", "watch"),
                _rule("", "persistentvolumeclaims/status", "patch"),
                _rule("", "persistentvolumes", *_VOLUME_VERBS),
                _rule("storage.k8s.io", "storageclasses", "get", "list", "watch"),
                _rule("", "events", "create", "patch"),
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ROLE},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": ROLE,
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Group",
                    "name": "system:nodes",
                }
            ],
        },
        _storage_class(),
    ]


def _storage_class() -> dict[str, Any]:
    """Makes a volume once a pod that needs it has a node; claims that name no class get it."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }


def _rule(group: str, resource: str, *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
