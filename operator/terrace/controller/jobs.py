"""The Jobs that bring files into a cache and take them out again, as dicts.

Owns: what each Job is told, and when it gives up. Does not own: their pods (``templates.py``), when
they run again (``facts.py``, ``unused.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.api.pool import Flavor
from terrace.controller import templates
from terrace.controller.files import extra_files
from terrace.controller.heads import child_head, child_metadata, common_labels, model_labels
from terrace.controller.kinds import JOB, POOL, Manifest, key_of
from terrace.controller.model_volumes import EACH_REPLICAS, claim_of, is_image, model_volume
from terrace.controller.templates import Fetching
from terrace_runtime.contract import (
    EXIT_BAD_CONFIG,
    EXIT_PERMANENT,
    FETCH_CONTAINER,
    FetchSpec,
    PruneSpec,
)

if TYPE_CHECKING:
    from terrace.api.model import File
    from terrace.api.pool import PoolSpec
    from terrace.controller.manifests import Subject
    from terrace_runtime.contract import FileRole

FETCH_RETRIES = 4
ABANDONED_S = 86400
"""Seconds without a byte after which an unfinished download is no use to anybody."""


def fetch_jobs(subject: Subject, flavor: Flavor) -> list[Manifest]:
    """One Job for each file that the model's spec names."""
    name, spec = subject.key.name, subject.spec
    own = fetch_job(subject, flavor, names.fetch_job_name(name), "model", spec.source)
    extras = [
        fetch_job(subject, flavor, file.job, file.role, file.source)
        for file in extra_files(name, spec)
    ]
    return [own, *extras]


def replica_fetches(subject: Subject) -> list[Fetching]:
    """What each replica brings to a volume of its own, the model first; empty: they share one.

    Files on a user's claim are used in place.
    """
    if not subject.pool.model_cache.is_per_replica:
        return []
    name, spec = subject.key.name, subject.spec
    files: list[tuple[FileRole, File]] = [("model", spec.source)]
    files += [(file.role, file.source) for file in extra_files(name, spec)]
    return [
        Fetching(fetch_spec(role, source, subject.pool), _secret(source))
        for role, source in files
        if not claim_of(source.uri)
    ]


def pull_secrets(subject: Subject) -> list[str]:
    """Secrets of the images that hold the model's files."""
    spec = subject.spec
    files = [spec.source, *(file.source for file in extra_files(subject.key.name, spec))]
    return [_secret(each) for each in files if is_image(claim_of(each.uri))]


def fetch_spec(role: FileRole, source: File, pool: PoolSpec) -> FetchSpec:
    """What a fetch Job is told; a mirror only where the source is of its kind."""
    scheme, sources = source.uri.partition("://")[0], pool.sources
    is_pulled = is_image(claim_of(source.uri))
    mirrors = {
        "hf": {"hf_endpoint": sources.hugging_face_endpoint},
        "s3": {"s3_endpoint": sources.s3_endpoint, "s3_region": sources.s3_region},
        "oci": {"oci_endpoint": sources.oci_endpoint},
    }.get(scheme, {})
    return FetchSpec(
        uri=source.uri,
        sha256=source.sha256,
        role=role,
        secret_dir="" if is_pulled or not source.secret_ref else templates.SECRET_DIR,
        allowed_networks=tuple(pool.access.allowed_networks),
        **{field: value for field, value in mirrors.items() if value is not None},
    )


def fetch_job(
    subject: Subject, flavor: Flavor, name: str, role: FileRole, source: File
) -> Manifest:
    """Fetches and verifies one file and reads its header; the header alone for PerReplica."""
    volume = model_volume(source.uri, subject.pool_name, subject.pool)
    told = fetch_spec(role, source, subject.pool)
    if volume.claim == EACH_REPLICAS:
        told = told.model_copy(update={"look_only": True})
    image = flavor.runtime_image or subject.runtime_image
    fetching = Fetching(told, _secret(source), is_image(volume.claim))
    pod = templates.fetch_pod(fetching, flavor, volume, image)
    labels = model_labels(subject.key.name, subject.pool_name, "fetch")
    head = child_head(JOB, subject, name, labels)
    return {**head, "spec": _job_spec(pod, labels)}


def prune_job(
    pool_object: Manifest, pool: PoolSpec, digests: tuple[str, ...], image: str
) -> Manifest:
    """Deletes files from a pool's cache, unless a fetch has asked for one meanwhile."""
    key, after_s = key_of(pool_object), pool.model_cache.delete_unused_after_seconds or 0
    prune = PruneSpec(
        digests=digests, unused_seconds=after_s, abandoned_seconds=max(after_s, ABANDONED_S)
    )
    # It goes where the volume is, so it tolerates what any flavor does.
    tolerations = [each for flavor in pool.flavors for each in flavor.tolerations]
    anywhere = Flavor(name="any", tolerations=tolerations)
    volume = model_volume("", key.name, pool)
    pod = templates.prune_pod(prune, anywhere, volume, pool.flavors[0].runtime_image or image)
    labels = common_labels("prune") | {names.LABEL_POOL: key.name}
    own = Key(key.namespace, names.prune_job_name(key.name))
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": child_metadata(own, labels, POOL, pool_object),
        "spec": _job_spec(pod, labels),
    }


def _secret(source: File) -> str:
    return source.secret_ref.name if source.secret_ref else ""


def _job_spec(pod: Manifest, labels: dict[str, str]) -> Manifest:
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
        "backoffLimit": FETCH_RETRIES,
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
