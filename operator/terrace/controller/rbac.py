"""Exactly what the operator may do; the chart's roles are tested against these.

Owns: the rules as values, in the shape of ``rules`` of a ClusterRole and a Role. Does not own:
the chart. Pure. ``CLUSTER_RULES`` apply in every watched namespace (nodes: in the cluster),
``NAMESPACE_RULES`` in the operator's own.
"""

from __future__ import annotations

from typing import TypedDict

from terrace.api import names
from terrace.controller.lease import LEASE_NAME
from terrace.controller.trust import SECRET_NAME


class _Rule(TypedDict):
    apiGroups: list[str]
    resources: list[str]
    verbs: list[str]


class Rule(_Rule, total=False):
    """One entry of ``rules``."""

    resourceNames: list[str]


_OWN = ["get", "list", "watch", "create", "patch"]

CLUSTER_RULES: list[Rule] = [
    {
        "apiGroups": [names.GROUP],
        "resources": [names.MODEL_PLURAL, names.POOL_PLURAL],
        "verbs": ["list", "watch"],
    },
    {
        "apiGroups": [names.GROUP],
        "resources": [f"{names.MODEL_PLURAL}/status", f"{names.POOL_PLURAL}/status"],
        "verbs": ["patch"],
    },
    {
        "apiGroups": [names.GROUP],
        "resources": [f"{names.MODEL_PLURAL}/finalizers", f"{names.POOL_PLURAL}/finalizers"],
        "verbs": ["update"],
    },
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": _OWN},
    {"apiGroups": [""], "resources": ["configmaps", "services"], "verbs": [*_OWN, "delete"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": [*_OWN, "delete"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": [*_OWN, "delete"]},
    {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": [*_OWN, "delete"]},
]
"""``finalizers`` is there because owner references with blockOwnerDeletion are checked for it."""

NAMESPACE_RULES: list[Rule] = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [LEASE_NAME],
        "verbs": ["get", "update"],
    },
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [SECRET_NAME],
        "verbs": ["get"],
    },
]
