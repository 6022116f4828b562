"""The objects that a model and a pool consist of, as dicts; held by golden files.

Owns: every field of every child. Does not own: pod templates (``templates.py``), whether a child
is written (``diff.py``). Pure. Next: ``diff.py`` compares them with what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.controller import templates
from terrace.controller.drift import digest_of
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    MODEL,
    POOL,
    SERVICE,
    STATEFULSET,
    Kind,
    Manifest,
    key_of,
    uid_of,
)
from terrace.controller.kv_claims import claim_template_fields
from terrace.controller.replica_config import runtime_config
from terrace_runtime.contract import (
    EXIT_BAD_CONFIG,
    EXIT_PERMANENT,
    FETCH_CONTAINER,
    RUNTIME_CONFIG_FILE,
    RUNTIME_PORT,
    RUNTIME_PORT_NAME,
    FetchSpec,
)

if TYPE_CHECKING:
    from terrace.api.model import ModelSpec
    from terrace.api.pool import Flavor, PoolSpec
    from terrace.controller.facts import KnownModel
    from terrace.planner.plan import OffloadPlan

DRAIN_MARGIN_S = 15
"""Seconds between the end of draining and the kill."""
FETCH_RETRIES = 4
DEFAULT_CACHE_SIZE = "20Gi"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose children are built, parsed, and what of the installation they depend on."""

    model: Manifest
    spec: ModelSpec
    pool_name: str
    pool: PoolSpec
    runtime_image: str
    trust_key: str

    @property
    def key(self) -> Key:
        """The model's identity."""
        return key_of(self.model)

    @property
    def replicas(self) -> int:
        """Wanted replicas; absent means one."""
        return 1 if self.spec.replicas is None else self.spec.replicas

    @property
    def volumes(self) -> templates.ModelVolume:
        """Where the model file is mounted from."""
        return templates.model_volume(self.spec.source.uri, self.pool_name, self.pool)


def model_children(
    subject: Subject, fetch_flavor: Flavor, known: KnownModel | None, plan: OffloadPlan | None
) -> list[tuple[Kind, Manifest]]:
    """Everything the model should consist of now, in the order in which it is applied."""
    children = [(JOB, fetch_job(subject, fetch_flavor)), (SERVICE, service(subject))]
    if known is not None and plan is not None:
        config = config_map(subject, known, plan)
        children += [
            (CONFIGMAP, config),
            (STATEFULSET, stateful_set(subject, plan, config["metadata"]["name"])),
            (BUDGET, disruption_budget(subject)),
        ]
    return children


def fetch_job(subject: Subject, flavor: Flavor) -> Manifest:
    """Fetches, verifies and inspects the model file; exactly one per model."""
    spec = subject.spec
    fetch = FetchSpec(
        uri=spec.source.uri,
        sha256=spec.source.sha256,
        allowed_networks=tuple(subject.pool.access.allowed_networks),
    )
    labels = _labels(subject.key.name, subject.pool_name, "fetch")
    rules = [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": FETCH_CONTAINER,
                "operator": "In",
                "values": [EXIT_PERMANENT, EXIT_BAD_CONFIG],
            },
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        **_head(JOB, subject, names.fetch_job_name(subject.key.name), labels),
        "spec": {
            "backoffLimit": FETCH_RETRIES,
            "podFailurePolicy": {"rules": rules},
            "template": {
                "metadata": {"labels": labels},
                "spec": templates.fetch_pod(
                    fetch, flavor, subject.volumes, flavor.runtime_image or subject.runtime_image
                ),
            },
        },
    }


def config_map(subject: Subject, known: KnownModel, plan: OffloadPlan) -> Manifest:
    """Immutable and named by its content, so a pod that crashes starts with what it had.

    It carries the plan as the set does: pods whose set is made anew still tell what they run with.
    """
    text = runtime_config(subject, known, plan).model_dump_json(indent=2)
    name = names.runtime_config_name(subject.key.name, plan.flavor, digest_of({"json": text}))
    labels = _labels(subject.key.name, subject.pool_name, "runtime")
    head = _head(CONFIGMAP, subject, name, labels)
    head["metadata"]["annotations"] = _plan_annotations(plan)
    return {
        **head,
        "immutable": True,
        "data": {RUNTIME_CONFIG_FILE: text},
    }


def service(subject: Subject) -> Manifest:
    """Headless: gives the StatefulSet its names; requests go through the gateway."""
    name = subject.key.name
    port = {"name": RUNTIME_PORT_NAME, "port": RUNTIME_PORT, "targetPort": RUNTIME_PORT_NAME}
    return {
        **_head(SERVICE, subject, name, _labels(name, subject.pool_name, "runtime")),
        "spec": {
            "clusterIP": "None",
            "selector": names.selector_labels(name),
            "ports": [{**port, "protocol": "TCP"}],
        },
    }


def plan_label(plan: OffloadPlan, trust_key: str) -> str:
    """16 hex digits; another value replaces the pods. A new trust key does, or all get 401."""
    return digest_of({"plan": plan.digest, "trust": trust_key})[:16]


def stateful_set(subject: Subject, plan: OffloadPlan, config_name: str) -> Manifest:
    """The replicas of one flavor. OnDelete: ``rollout.py`` says which pod goes when."""
    name = subject.key.name
    flavor = next(f for f in subject.pool.flavors if f.name == plan.flavor)
    labels = {**_labels(name, subject.pool_name, "runtime"), names.LABEL_FLAVOR: plan.flavor}
    pod_labels = {**labels, names.LABEL_PLAN: plan_label(plan, subject.trust_key)}
    head = _head(STATEFULSET, subject, names.statefulset_name(name, plan.flavor), labels)
    head["metadata"]["annotations"] = _plan_annotations(plan)
    return {
        **head,
        "spec": {
            "serviceName": name,
            "replicas": subject.replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {
                "matchLabels": {
                    **names.selector_labels(name),
                    names.LABEL_FLAVOR: plan.flavor,
                }
            },
            "template": {
                "metadata": {"labels": pod_labels},
                "spec": templates.runtime_pod(
                    plan,
                    flavor,
                    subject.volumes,
                    flavor.runtime_image or subject.runtime_image,
                    config_name,
                    subject.pool.drain_timeout_seconds + DRAIN_MARGIN_S,
                ),
            },
            **claim_template_fields(plan.volume),
        },
    }


def disruption_budget(subject: Subject) -> Manifest:
    """Lets a drain take one replica at a time."""
    name = subject.key.name
    return {
        **_head(BUDGET, subject, name, _labels(name, subject.pool_name, "runtime")),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector_labels(name)},
        },
    }


def model_cache_claim(pool_object: Manifest, pool: PoolSpec) -> Manifest:
    """The volume for model files, shared by the pool's models."""
    cache = pool.model_cache
    key = key_of(pool_object)
    spec: Manifest = {
        "accessModes": [cache.access_mode or "ReadWriteOnce"],
        "resources": {"requests": {"storage": cache.size or DEFAULT_CACHE_SIZE}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    labels = _common("model-cache") | {names.LABEL_POOL: key.name}
    metadata = _metadata(
        Key(key.namespace, names.model_cache_claim_name(key.name)), labels, POOL, pool_object
    )
    return {"apiVersion": CLAIM.api_version, "kind": CLAIM.kind, "metadata": metadata, "spec": spec}


def _plan_annotations(plan: OffloadPlan) -> dict[str, str]:
    return {
        names.ANNOTATION_PLAN: plan.model_dump_json(exclude_defaults=True),
        names.ANNOTATION_INPUTS: plan.inputs,
    }


def _common(component: str) -> dict[str, str]:
    return {
        names.MANAGED_BY: names.MANAGED_BY_VALUE,
        names.PART_OF: "terrace",
        names.NAME: "terrace-model",
        names.COMPONENT: component,
    }


def _labels(model: str, pool: str, component: str) -> dict[str, str]:
    return {**_common(component), names.LABEL_MODEL: model, names.LABEL_POOL: pool}


def _head(kind: Kind, subject: Subject, name: str, labels: dict[str, str]) -> Manifest:
    metadata = _metadata(Key(subject.key.namespace, name), labels, MODEL, subject.model)
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def _metadata(key: Key, labels: dict[str, str], owner_kind: Kind, owner: Manifest) -> Manifest:
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
