"""The objects that a model and a pool consist of, as dicts; held by golden files.

Owns: every field of every child. Does not own: Jobs (``jobs.py``), pod templates
(``templates.py``), whether a child is written (``diff.py``). Pure. Next: ``diff.py`` compares them
with what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.controller import templates
from terrace.controller.device_pods import Installation, add_devices
from terrace.controller.drift import digest_of
from terrace.controller.heads import child_head, child_metadata, common_labels, model_labels
from terrace.controller.jobs import fetch_jobs, pull_secrets, replica_fetches
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    POOL,
    SERVICE,
    STATEFULSET,
    Kind,
    Manifest,
    key_of,
)
from terrace.controller.model_volumes import DEFAULT_CACHE_SIZE, own_claim_template, replica_volumes
from terrace.controller.replica_claims import claim_template_fields, claim_templates
from terrace.planner.accelerators import AcceleratorTable, built_in
from terrace_runtime.contract import (
    RUNTIME_CONFIG_FILE,
    RUNTIME_PORT,
    RUNTIME_PORT_NAME,
    RuntimeConfig,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from terrace.api.model import ModelSpec
    from terrace.api.pool import Flavor, PoolSpec
    from terrace.controller.model_volumes import ModelVolume
    from terrace.planner.correction import Place
    from terrace.planner.plan import OffloadPlan

DRAIN_MARGIN_S = 15
"""Seconds between the end of draining and the kill."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose children are built, parsed, and what of the installation they depend on."""

    model: Manifest
    spec: ModelSpec
    pool_name: str
    pool: PoolSpec
    runtime_image: str
    trust_key: str
    backend_images: Mapping[str, str] = field(default_factory=dict)
    accelerators: AcceleratorTable = field(default_factory=built_in)
    given_up: Place | None = None
    """Where the plan is too small, with no further try: no replica is wanted then."""

    @property
    def installation(self) -> Installation:
        """Images and devices that the operator was installed with."""
        return Installation(self.runtime_image, self.backend_images, self.accelerators)

    @property
    def key(self) -> Key:
        """The model's identity."""
        return key_of(self.model)

    @property
    def replicas(self) -> int:
        """Wanted replicas; absent means one."""
        if self.given_up is not None:
            return 0
        return 1 if self.spec.replicas is None else self.spec.replicas


def model_children(
    subject: Subject,
    fetch_flavor: Flavor,
    plan: OffloadPlan | None = None,
    config: RuntimeConfig | None = None,
) -> list[tuple[Kind, Manifest]]:
    """Everything the model should consist of now, in the order in which it is applied.

    Without a plan and what replicas are told: what comes before them.
    """
    jobs = [(JOB, job) for job in fetch_jobs(subject, fetch_flavor)]
    children = [*jobs, (SERVICE, service(subject))]
    if plan is None or config is None:
        return children
    config_object = config_map(subject, plan, config)
    return [
        *children,
        (CONFIGMAP, config_object),
        (STATEFULSET, stateful_set(subject, plan, config, config_object["metadata"]["name"])),
        *([(BUDGET, disruption_budget(subject))] if has_budget(subject.replicas) else []),
    ]


def config_map(subject: Subject, plan: OffloadPlan, config: RuntimeConfig) -> Manifest:
    """Immutable and named by its content, so a pod that crashes starts with what it had.

    It carries the plan as the set does: pods whose set is made anew still tell what they run with.
    """
    text = config.model_dump_json(indent=2)
    name = names.runtime_config_name(subject.key.name, plan.flavor, digest_of({"json": text}))
    labels = model_labels(subject.key.name, subject.pool_name, "runtime")
    head = child_head(CONFIGMAP, subject, name, labels)
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
        **child_head(SERVICE, subject, name, model_labels(name, subject.pool_name, "runtime")),
        "spec": {
            "clusterIP": "None",
            "selector": names.selector_labels(name),
            "ports": [{**port, "protocol": "TCP"}],
        },
    }


def plan_label(plan: OffloadPlan, trust_key: str) -> str:
    """16 hex digits; another value replaces the pods. A new trust key does, or all get 401."""
    return digest_of({"plan": plan.digest, "trust": trust_key})[:16]


def stateful_set(
    subject: Subject, plan: OffloadPlan, config: RuntimeConfig, config_name: str
) -> Manifest:
    """The replicas of one flavor. OnDelete: ``rollout.py`` says which pod goes when."""
    name = subject.key.name
    volumes = replica_volumes(
        config.file_paths, subject.spec.source.uri, subject.pool_name, subject.pool
    )
    flavor = next(f for f in subject.pool.flavors if f.name == plan.flavor)
    labels = {**model_labels(name, subject.pool_name, "runtime"), names.LABEL_FLAVOR: plan.flavor}
    pod_labels = {**labels, names.LABEL_PLAN: plan_label(plan, subject.trust_key)}
    head = child_head(STATEFULSET, subject, names.statefulset_name(name, plan.flavor), labels)
    head["metadata"]["annotations"] = _plan_annotations(plan)
    if subject.given_up is not None:
        head["metadata"]["annotations"][names.ANNOTATION_GIVEN_UP] = subject.given_up
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
                "spec": _replica_pod(subject, plan, flavor, volumes, config_name),
            },
            **claim_template_fields(replica_claims(subject, plan)),
        },
    }


def replica_claims(subject: Subject, plan: OffloadPlan) -> list[Manifest]:
    """Templates of the claims that each replica has for itself."""
    own = own_claim_template(subject.pool) if replica_fetches(subject) else None
    return claim_templates(plan.volume, own)


def _replica_pod(
    subject: Subject,
    plan: OffloadPlan,
    flavor: Flavor,
    volumes: Sequence[ModelVolume],
    config_name: str,
) -> Manifest:
    installed = subject.installation
    pod = templates.runtime_pod(
        plan,
        flavor,
        volumes,
        installed.image_of(flavor, plan.device),
        config_name,
        subject.pool.drain_timeout_seconds + DRAIN_MARGIN_S,
        replica_fetches(subject),
    ) | templates.pull_secrets(pull_secrets(subject))
    if plan.device is None:
        return pod
    cache = subject.pool.model_cache
    # A volume that one node alone can mount holds all files of the pool.
    is_shared = cache.claim_name is None and not cache.is_per_replica
    is_tied = is_shared and cache.access_mode != "ReadWriteMany"
    return add_devices(
        pod,
        plan,
        installed.pod_of(plan.device),
        own=names.selector_labels(subject.key.name),
        beside={names.LABEL_POOL: subject.pool_name} if is_tied else None,
    )


def has_budget(replicas: int) -> bool:
    """Whether a budget protects anything; a lone replica must go, or no drain ever ends.

    With ``maxUnavailable: 1`` it may go anyway. And kube-controller-manager compares each pod event
    with all budgets of the namespace, which was half of its work in large ones.
    """
    return replicas > 1


def disruption_budget(subject: Subject) -> Manifest:
    """Lets a drain take one replica at a time, and any that is not ready.

    Those answer nobody: where all are unready, none could ever leave a node otherwise.
    """
    name = subject.key.name
    return {
        **child_head(BUDGET, subject, name, model_labels(name, subject.pool_name, "runtime")),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            # No more labels than tell replicas apart: each is compared at every pod event.
            "selector": {
                "matchLabels": {names.LABEL_MODEL: name, names.COMPONENT: "runtime"},
            },
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
    labels = common_labels("model-cache") | {names.LABEL_POOL: key.name}
    metadata = child_metadata(
        Key(key.namespace, names.model_cache_claim_name(key.name)), labels, POOL, pool_object
    )
    return {"apiVersion": CLAIM.api_version, "kind": CLAIM.kind, "metadata": metadata, "spec": spec}


def _plan_annotations(plan: OffloadPlan) -> dict[str, str]:
    return {
        names.ANNOTATION_PLAN: plan.model_dump_json(exclude_defaults=True),
        names.ANNOTATION_INPUTS: plan.inputs,
    }
