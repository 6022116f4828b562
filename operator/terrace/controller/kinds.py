"""The kinds of object that the controller reads or writes, and where the API serves them.

Owns: group, version, plural and scope of each kind. Does not own: our own names
(``api/names.py``) or any call (``cluster.py``). Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from terrace.api import names
from terrace.api.names import Key

Manifest: TypeAlias = dict[str, Any]
"""An object as the API has it in JSON."""


class Kind(NamedTuple):
    """One kind of object."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def __str__(self) -> str:
        """As people write it."""
        return self.kind

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None) -> str:
        """URL path of the collection, in one namespace or (None) across all."""
        root = "/apis/" if self.group else "/api/"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{self.api_version}{scope}/{self.plural}"


MODEL = Kind(names.API_VERSION, names.MODEL_KIND, names.MODEL_PLURAL)
POOL = Kind(names.API_VERSION, names.POOL_KIND, names.POOL_PLURAL)
NODE = Kind("v1", "Node", "nodes", namespaced=False)
POD = Kind("v1", "Pod", "pods")
JOB = Kind("batch/v1", "Job", "jobs")
STATEFULSET = Kind("apps/v1", "StatefulSet", "statefulsets")
SERVICE = Kind("v1", "Service", "services")
CONFIGMAP = Kind("v1", "ConfigMap", "configmaps")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
SECRET = Kind("v1", "Secret", "secrets")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
EVENT = Kind("v1", "Event", "events")

CHILD_KINDS = (CLAIM, JOB, CONFIGMAP, SERVICE, STATEFULSET, BUDGET)
"""What the operator makes, in the order in which it is applied."""
LABELLED_KINDS = (*CHILD_KINDS, POD)
"""Watched with a label selector; the rest is watched whole."""
WATCHED_KINDS = (POOL, MODEL, NODE, *LABELLED_KINDS)
"""Everything in the cache."""


def key_of(manifest: Manifest) -> Key:
    """Identity of an object; the namespace is empty for cluster-scoped kinds."""
    metadata = manifest["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def uid_of(manifest: Manifest) -> str:
    """The object's uid; empty for a manifest that was not stored yet."""
    return str(manifest["metadata"].get("uid", ""))


def controller_of(manifest: Manifest) -> Manifest | None:
    """The owner reference with ``controller: true``."""
    for owner in manifest["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return dict(owner)
    return None


def is_controlled_by(manifest: Manifest, owner_uid: str) -> bool:
    """Whether the object belongs to the owner with that uid."""
    owner = controller_of(manifest)
    return owner is not None and owner.get("uid") == owner_uid


def is_of_predecessor(live: Manifest, wanted: Manifest) -> bool:
    """Whether it belongs to an owner that was deleted and made anew: the same but for its uid."""
    theirs, ours = controller_of(live), controller_of(wanted)
    if theirs is None or ours is None or theirs.get("uid") == ours.get("uid"):
        return False
    return all(theirs.get(field) == ours.get(field) for field in ("apiVersion", "kind", "name"))


def labels_of(manifest: Manifest) -> dict[str, str]:
    """The object's labels, never None."""
    return manifest["metadata"].get("labels") or {}


def annotations_of(manifest: Manifest) -> dict[str, str]:
    """The object's annotations, never None."""
    return manifest["metadata"].get("annotations") or {}


def is_deleting(manifest: Manifest) -> bool:
    """Whether the object is on its way out."""
    return bool(manifest["metadata"].get("deletionTimestamp"))
