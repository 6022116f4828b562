"""Names, labels and owners of children: what all of them have alike.

Owns: their metadata. Does not own: what is below it (``manifests.py``, ``jobs.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import MODEL, Kind, Manifest, key_of, uid_of

if TYPE_CHECKING:
    from terrace.controller.manifests import Subject


def common_labels(component: str) -> dict[str, str]:
    """Labels of everything that the operator makes."""
    return {
        names.MANAGED_BY: names.MANAGED_BY_VALUE,
        names.PART_OF: "terrace",
        names.NAME: "terrace-model",
        names.COMPONENT: component,
    }


def model_labels(model: str, pool: str, component: str) -> dict[str, str]:
    """Labels of what a model consists of."""
    return {**common_labels(component), names.LABEL_MODEL: model, names.LABEL_POOL: pool}


def child_head(kind: Kind, subject: Subject, name: str, labels: dict[str, str]) -> Manifest:
    """Kind and metadata of a model's child."""
    metadata = child_metadata(Key(subject.key.namespace, name), labels, MODEL, subject.model)
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def child_metadata(key: Key, labels: dict[str, str], owner_kind: Kind, owner: Manifest) -> Manifest:
    """Metadata with the owner reference that garbage collection goes by."""
    return {
        "name": key.name,
        "namespace": key.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": owner_kind.api_version,
                "kind": owner_kind.kind,
                "name": key_of(owner).name,
                "uid": uid_of(owner),
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
