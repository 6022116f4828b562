"""The two pod templates: the fetch pod and the replica.

Owns: containers, volumes, probes, resources, security. Does not own: the objects around them
(``manifests.py``). Pure. Both satisfy the *restricted* pod security standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.controller.model_volumes import EACH_REPLICAS, claim_volumes, mounts
from terrace_runtime.contract import (
    CONFIG_DIR,
    FETCH_CONTAINER,
    KV_DIR,
    RUNTIME_CONTAINER,
    RUNTIME_PORT,
    RUNTIME_PORT_NAME,
    FetchSpec,
    PruneSpec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from terrace.api.pool import Flavor
    from terrace.controller.kinds import Manifest
    from terrace.controller.model_volumes import ModelVolume
    from terrace.planner.plan import KvVolume, OffloadPlan

USER_ID = 65532
"""The images' user; fsGroup lets it write the cache."""
FETCH_ENV = "TERRACE_FETCH"
PRUNE_ENV = "TERRACE_PRUNE"
SECRET_DIR = "/secret"  # noqa: S105 -- a path in the container
"""Mount of the Secret of a source: one file per key."""
_SECRET = "secret"  # noqa: S105 -- a volume's name
_SECRET_MOUNT: Manifest = {"name": _SECRET, "mountPath": SECRET_DIR, "readOnly": True}
_SECRET_MODE = 0o440
FETCH_REQUESTS = {"cpu": "100m", "memory": "256Mi"}
FETCH_LIMITS = {"memory": "1Gi"}
LOAD_BYTES_PER_S = 50 * 1024 * 1024
"""Slowest disk that start-up waits for."""
MIN_START_S = 120
KV_VOLUME = "kv"
"""Also the name of the claim template, so that claims are called kv-MODEL-FLAVOR-0."""


@dataclass(frozen=True, slots=True)
class Fetching:
    """One file that a pod fetches, and the Secret that its source needs, if any."""

    spec: FetchSpec
    secret: str = ""
    is_pull_secret: bool = False
    """The file is in an image that the kubelet pulls, and the Secret is for that."""


def fetch_pod(fetch: Fetching, flavor: Flavor, volume: ModelVolume, image: str) -> Manifest:
    """Writes the cache, if it has one; its termination message is the FetchOutcome."""
    mounted = [] if fetch.spec.look_only else [volume]
    secret = _SECRET if fetch.secret and not fetch.is_pull_secret else ""
    folders = mounts(mounted, read_only=False)
    container = _fetch_container(FETCH_CONTAINER, image, fetch, folders, secret)
    volumes = [*claim_volumes(mounted), *_secret_volumes({secret: fetch.secret})]
    pod = _file_pod(container, flavor, volumes)
    return pod | pull_secrets([fetch.secret] if fetch.is_pull_secret else [])


def prune_pod(prune: PruneSpec, flavor: Flavor, volume: ModelVolume, image: str) -> Manifest:
    """Deletes from the cache; its termination message is the PruneOutcome."""
    told = {"name": PRUNE_ENV, "value": prune.model_dump_json(exclude_defaults=True)}
    mounted = mounts([volume], read_only=False)
    container = _file_container(FETCH_CONTAINER, image, "prune", told, mounted)
    return _file_pod(container, flavor, claim_volumes([volume]))


def _fetch_container(
    name: str, image: str, fetch: Fetching, mounted: list[Manifest], secret: str
) -> Manifest:
    """``secret``: name of the volume with the source's Secret; empty where it needs none."""
    told = {"name": FETCH_ENV, "value": fetch.spec.model_dump_json(exclude_defaults=True)}
    mine = [{**_SECRET_MOUNT, "name": secret}] if secret else []
    return _file_container(name, image, "fetch", told, [*mounted, *mine])


def _file_container(
    name: str, image: str, command: str, variable: Manifest, mounted: list[Manifest]
) -> Manifest:
    """Works on files once; its termination message is the outcome."""
    return {
        "name": name,
        "image": image,
        "args": [command],
        "env": [variable],
        "resources": {"requests": FETCH_REQUESTS, "limits": FETCH_LIMITS},
        "volumeMounts": [*mounted, _tmp_mount()],
        "terminationMessagePolicy": "File",
        **_restricted_container(),
    }


def _file_pod(container: Manifest, flavor: Flavor, volumes: list[Manifest]) -> Manifest:
    return {
        **_pod_common(flavor),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [*volumes, _tmp_volume()],
    }


def runtime_pod(
    plan: OffloadPlan,
    flavor: Flavor,
    volumes: Sequence[ModelVolume],
    image: str,
    config_name: str,
    grace_s: int,
    fetches: Sequence[Fetching] = (),
) -> Manifest:
    """Serves the model with exactly the plan's numbers.

    ``fetches``: files that it brings to its own volume before it starts.
    """
    secrets = {f"{_SECRET}-{number}": fetch.secret for number, fetch in enumerate(fetches, 1)}
    init = _init_containers(fetches, [*secrets], volumes, image)
    return {
        **_pod_common(flavor),
        "terminationGracePeriodSeconds": grace_s,
        **({"initContainers": init} if init else {}),
        "containers": [_runtime_container(plan, flavor, volumes, image)],
        "volumes": [
            *claim_volumes(volumes),
            {"name": "config", "configMap": {"name": config_name}},
            _tmp_volume(),
            *_kv_volumes(plan.volume),
            *_secret_volumes(secrets),
        ],
    }


def _init_containers(
    fetches: Sequence[Fetching], secrets: Sequence[str], volumes: Sequence[ModelVolume], image: str
) -> list[Manifest]:
    own = [volume for volume in volumes if volume.claim == EACH_REPLICAS]
    mounted = mounts(own, read_only=False)
    return [
        _fetch_container(
            f"{FETCH_CONTAINER}-{number}", image, fetch, mounted, fetch.secret and secret
        )
        for number, (fetch, secret) in enumerate(zip(fetches, secrets, strict=True), 1)
    ]


def _runtime_container(
    plan: OffloadPlan, flavor: Flavor, volumes: Sequence[ModelVolume], image: str
) -> Manifest:
    requests = {"cpu": f"{plan.cpu_millis}m", "memory": str(plan.memory_request_bytes)}
    limits = {"memory": str(plan.memory_limit_bytes)}
    if flavor.host.cpu is not None:
        limits["cpu"] = requests["cpu"]
    if plan.volume is not None and plan.volume.is_ephemeral:
        requests["ephemeral-storage"] = volume_size(plan.volume)
    return {
        "name": RUNTIME_CONTAINER,
        "image": image,
        "args": ["serve", "--host=$(POD_IP)", f"--port={RUNTIME_PORT}"],
        "env": [
            _field_variable("POD_IP", "status.podIP"),
            # The folder of a replica in a claim that all of them share.
            *([_field_variable("POD_NAME", "metadata.name")] if _shares_claim(plan) else []),
        ],
        "ports": [{"name": RUNTIME_PORT_NAME, "containerPort": RUNTIME_PORT, "protocol": "TCP"}],
        "resources": {"requests": requests, "limits": limits},
        "volumeMounts": [
            *mounts(volumes, read_only=True),
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            _tmp_mount(),
            *_kv_mounts(plan),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **_probes(plan),
        **_restricted_container(),
    }


def _probes(plan: OffloadPlan) -> Manifest:
    start_s = MIN_START_S + plan.weights_bytes // LOAD_BYTES_PER_S
    return {
        "startupProbe": {
            "httpGet": _get("/readyz"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": start_s,
        },
        "readinessProbe": {
            "httpGet": _get("/readyz"),
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": _get("/healthz"),
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        },
    }


def _get(path: str) -> Manifest:
    return {"path": path, "port": RUNTIME_PORT_NAME, "scheme": "HTTP"}


def _pod_common(flavor: Flavor) -> Manifest:
    common: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if flavor.node_selector:
        common["nodeSelector"] = dict(flavor.node_selector)
    if flavor.tolerations:
        common["tolerations"] = [
            toleration.model_dump(by_alias=True, exclude_none=True)
            for toleration in flavor.tolerations
        ]
    return common


def _restricted_container() -> Manifest:
    return {
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def volume_size(volume: KvVolume) -> str:
    """The volume's size as a quantity; it is planned in whole MiB."""
    return f"{-(-volume.bytes >> 20)}Mi"


def _kv_volumes(volume: KvVolume | None) -> list[Manifest]:
    """The disk tier's volume, unless the set's claim template brings it."""
    if volume is not None and volume.claim:
        return [{"name": KV_VOLUME, "persistentVolumeClaim": {"claimName": volume.claim}}]
    if volume is not None and volume.is_ephemeral:
        return [{"name": KV_VOLUME, "emptyDir": {"sizeLimit": volume_size(volume)}}]
    return []


def _kv_mounts(plan: OffloadPlan) -> list[Manifest]:
    if plan.volume is None:
        return []
    mount: Manifest = {"name": KV_VOLUME, "mountPath": KV_DIR}
    return [mount | ({"subPathExpr": "$(POD_NAME)"} if _shares_claim(plan) else {})]


def _shares_claim(plan: OffloadPlan) -> bool:
    return plan.volume is not None and bool(plan.volume.claim)


def _field_variable(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _secret_volumes(secrets: Mapping[str, str]) -> list[Manifest]:
    """``secrets``: Secret by volume; only containers that fetch mount them."""
    # Not optional: the pod waits until somebody makes the Secret.
    return [
        {"name": volume, "secret": {"secretName": name, "defaultMode": _SECRET_MODE}}
        for volume, name in secrets.items()
        if volume and name
    ]


def pull_secrets(secrets: Sequence[str]) -> Manifest:
    """Fields of a pod whose images, those that hold model files too, need these Secrets."""
    named = [{"name": name} for name in dict.fromkeys(filter(None, secrets))]
    return {"imagePullSecrets": named} if named else {}


def _tmp_mount() -> Manifest:
    return {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 -- a path in the container


def _tmp_volume() -> Manifest:
    return {"name": "tmp", "emptyDir": {}}
