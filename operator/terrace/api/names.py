"""Every string of the Kubernetes API that is ours: group, kinds, labels, annotations, names.

Owns: the spelling. Does not own: who sets what when (``controller``). Pure.
"""

from __future__ import annotations

from typing import NamedTuple

GROUP = "terrace.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
MODEL_KIND, MODEL_PLURAL = "InferenceModel", "inferencemodels"
POOL_KIND, POOL_PLURAL = "InferencePool", "inferencepools"
MAX_NAME_LENGTH = 40
"""Of both kinds' objects. With a dash and a flavor's name, a StatefulSet's name has 52 characters
at most: its pods carry it, a dash and a hash of up to 10 in a label, which may have 63."""
MAX_FLAVOR_LENGTH = 11

# Field managers -------------------------------------------------------------------------------
FIELD_MANAGER = "terrace"
STATUS_MANAGER = "terrace-status"

# Labels ---------------------------------------------------------------------------------------
MANAGED_BY = "app.kubernetes.io/managed-by"
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY_VALUE = "terrace"
LABEL_MODEL = f"{GROUP}/model"
LABEL_POOL = f"{GROUP}/pool"
LABEL_FLAVOR = f"{GROUP}/flavor"
LABEL_PLAN = f"{GROUP}/plan"
"""On pods and their template: a digest of the plan and of the key that replicas trust. A pod whose
label differs from its set's is outdated: the rollout replaces it. Nothing else restarts a pod."""

# Annotations ----------------------------------------------------------------------------------
ANNOTATION_PLAN = f"{GROUP}/plan"
"""On the StatefulSet: the OffloadPlan it was made from, as JSON (plans are sticky)."""
ANNOTATION_INPUTS = f"{GROUP}/plan-inputs"
"""On the StatefulSet: digest of the inputs whose change restarts replicas."""
ANNOTATION_GIVEN_UP = f"{GROUP}/given-up"
"""On the StatefulSet: where its plan was too small at the last try (host or device); it has no
replicas then."""
ANNOTATION_TAKE_PLAN = f"{GROUP}/take-plan"
"""On an InferenceModel, by its user: take the plan that waits, if its digest begins so."""
MIN_DIGEST_DIGITS = 12
"""Digits of a digest by which a user may name it."""
ANNOTATION_APPLIED = f"{GROUP}/applied"
"""On every child: digest of the manifest we applied; equal and undrifted means no write."""


class Key(NamedTuple):
    """Identity of a namespaced object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """``namespace/name``, as people write it."""
        return f"{self.namespace}/{self.name}"


def statefulset_name(model: str, flavor: str) -> str:
    """Unique, because a flavor's name holds no dash."""
    return f"{model}-{flavor}"


def runtime_config_name(model: str, flavor: str, digest: str) -> str:
    """ConfigMaps are immutable and named by content, so an old pod keeps its own on a crash."""
    return f"{model}-{flavor}-{digest[:10]}"


def fetch_job_name(model: str, digest: str = "") -> str:
    """One Job per model, whose source is immutable; ``digest``: of another file's source."""
    return f"{model}-fetch-{digest[:10]}" if digest else f"{model}-fetch"


def prune_job_name(pool: str) -> str:
    """The Job that deletes unused files from a pool's cache; one at a time."""
    return f"{pool}-prune"


def model_cache_claim_name(pool: str) -> str:
    """The claim that the operator makes for a pool without ``modelCache.claimName``."""
    return f"{pool}-models"


def selector_labels(model: str) -> dict[str, str]:
    """Select all replicas of a model; never holds a version or a flavor."""
    return {MANAGED_BY: MANAGED_BY_VALUE, LABEL_MODEL: model, COMPONENT: "runtime"}
