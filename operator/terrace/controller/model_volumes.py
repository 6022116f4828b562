"""The volumes that model files lie on, for fetch pods and for replicas.

Owns: which claim or image a file is in and where that is mounted; paths of files in a user's second
one; the template of the claim that a replica has for itself.
Does not own: pods (``templates.py``). Pure. Next: ``manifests.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from terrace.api import names
from terrace.controller.kinds import (
    CLAIM,
    POOL,
    Manifest,
    controller_of,
    is_controlled_by,
    key_of,
    uid_of,
)
from terrace_runtime.contract import MODEL_CACHE_DIR, MODEL_SOURCE_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace.api.pool import PoolSpec

EACH_REPLICAS = "(each replica's own)"
"""Stands for a claim's name where every replica has its own; no claim can be called so."""
OWN_VOLUME = "models"
"""Name of that claim's template, so that claims are called models-MODEL-FLAVOR-0."""
DEFAULT_CACHE_SIZE = "20Gi"
EXTRA_SOURCES_DIR = f"{MODEL_SOURCE_DIR}s"
"""In a replica, a claim or an image in which none but a projector, a draft or an adapter lies is
mounted below, by its name with ``/`` and ``:`` as in a URL."""
_IMAGE = "image "


@dataclass(frozen=True, slots=True)
class ModelVolume:
    """What holds model files, and where it is mounted."""

    claim: str
    """Name of a claim, ``image REFERENCE``, or EACH_REPLICAS."""
    mount_path: str
    is_user_owned: bool
    """What ``pvc://`` and ``oci://...#PATH`` name is used in place and never written."""


def model_volume(uri: str, pool_name: str, pool: PoolSpec) -> ModelVolume:
    """Where a fetch pod finds or puts the file: the user's claim, else the pool's cache."""
    claim = claim_of(uri)
    if claim:
        return ModelVolume(claim, MODEL_SOURCE_DIR, is_user_owned=True)
    cache = pool.model_cache
    own = EACH_REPLICAS if cache.is_per_replica else cache.claim_name
    claim = own or names.model_cache_claim_name(pool_name)
    return ModelVolume(claim, MODEL_CACHE_DIR, is_user_owned=False)


def cache_claim(pool: Manifest) -> str:
    """The claim of a stored pool's model cache; it need not parse."""
    model_cache = (pool.get("spec") or {}).get("modelCache") or {}
    if model_cache.get("sharing") == "PerReplica":
        return EACH_REPLICAS
    return str(model_cache.get("claimName") or names.model_cache_claim_name(key_of(pool).name))


def is_left_behind(claim: Manifest, pool: Manifest) -> bool:
    """Whether the claim was made for a deleted pool of the same name, and is about to go."""
    owner = controller_of(claim)
    this = (POOL.kind, key_of(pool).name)
    is_pools = owner is not None and (owner.get("kind"), owner.get("name")) == this
    return is_pools and not is_controlled_by(claim, uid_of(pool))


def claim_of(uri: str) -> str:
    """The claim of ``pvc://CLAIM/PATH`` or the image of ``oci://IMAGE#PATH``; empty for others."""
    scheme, _, rest = uri.partition("://")
    if scheme == "pvc":
        return rest.partition("/")[0]
    reference, hash_sign, _ = rest.partition("#")
    return f"{_IMAGE}{reference}" if scheme == "oci" and hash_sign else ""


def volume_claim(volume: Manifest) -> str:
    """What a pod's volume holds, in the words of ModelVolume.claim; empty where it is none."""
    if claim := volume.get("persistentVolumeClaim"):
        return str(claim["claimName"])
    image = volume.get("image")
    return f"{_IMAGE}{image['reference']}" if image else ""


def is_image(claim: str) -> bool:
    """Whether it is an image that holds the file."""
    return claim.startswith(_IMAGE)


def replica_path(path: str, uri: str, model_uri: str) -> str:
    """Where a replica sees a file that a fetch pod calls ``path``.

    Every fetch pod has its claim at the same place; a replica may need several.
    """
    claim = claim_of(uri)
    if not claim or claim == claim_of(model_uri):
        return path
    return f"{_extra_dir(claim)}{path.removeprefix(MODEL_SOURCE_DIR)}"


def replica_volumes(
    paths: Iterable[str], model_uri: str, pool_name: str, pool: PoolSpec
) -> tuple[ModelVolume, ...]:
    """The volumes that hold these files of a replica, the first file's first."""
    volumes: dict[str, ModelVolume] = {}
    for path in paths:
        if path.startswith(f"{EXTRA_SOURCES_DIR}/"):
            claim = unquote(path.removeprefix(f"{EXTRA_SOURCES_DIR}/").partition("/")[0])
            place = _extra_dir(claim)
            volumes[place] = ModelVolume(claim, place, is_user_owned=True)
        else:
            is_in_claim = path.startswith(f"{MODEL_SOURCE_DIR}/")
            volume = model_volume(model_uri if is_in_claim else "", pool_name, pool)
            volumes[volume.mount_path] = volume
    return tuple(volumes.values())


def own_claim_template(pool: PoolSpec) -> Manifest:
    """Template of the claim that each replica has for its files."""
    cache = pool.model_cache
    size, storage_class = cache.size or DEFAULT_CACHE_SIZE, cache.storage_class_name
    return claim_template(OWN_VOLUME, size, storage_class)


def claim_template(name: str, size: str, storage_class: str | None) -> Manifest:
    """A claim per replica, as a StatefulSet makes it."""
    spec: Manifest = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": size}},
    }
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    head = {"apiVersion": CLAIM.api_version, "kind": CLAIM.kind, "metadata": {"name": name}}
    return {**head, "spec": spec}


def mounts(volumes: Iterable[ModelVolume], *, read_only: bool) -> list[Manifest]:
    """The container's side; ``read_only`` or not, a user's claim is never written."""
    volumes = tuple(volumes)
    names_of = _volume_names(volumes)
    return [
        {"name": names_of[volume.claim], "mountPath": volume.mount_path}
        | ({"readOnly": True} if read_only or volume.is_user_owned else {})
        for volume in volumes
    ]


def claim_volumes(volumes: Iterable[ModelVolume]) -> list[Manifest]:
    """The pod's side: each claim once, as one that is mounted twice hangs some drivers.

    A claim of the replica's own comes from the set's template.
    """
    volumes = tuple(volumes)
    result = []
    for claim, name in _volume_names(volumes).items():
        if claim == EACH_REPLICAS:
            continue
        if is_image(claim):
            # Another image under the same tag would be another model than the one that was planned.
            image = {"reference": claim.removeprefix(_IMAGE), "pullPolicy": "IfNotPresent"}
            result.append({"name": name, "image": image})
            continue
        source: Manifest = {"claimName": claim}
        if all(volume.is_user_owned for volume in volumes if volume.claim == claim):
            source["readOnly"] = True
        result.append({"name": name, "persistentVolumeClaim": source})
    return result


def _extra_dir(claim: str) -> str:
    return f"{EXTRA_SOURCES_DIR}/{quote(claim, safe='')}"


def _volume_names(volumes: tuple[ModelVolume, ...]) -> dict[str, str]:
    claims = dict.fromkeys(volume.claim for volume in volumes)
    named = {claim: "model" if n == 0 else f"model-{n + 1}" for n, claim in enumerate(claims)}
    return named | ({EACH_REPLICAS: OWN_VOLUME} if EACH_REPLICAS in named else {})
