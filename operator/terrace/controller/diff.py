"""What has to be written so that a model's children are as wanted.

Owns: the comparison, what may not be changed in place, which leftovers go. Does not own: writing
(``apply.py``), the order of a rollout (``rollout.py``). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from terrace.api.quantity import parse_quantity
from terrace.controller.drift import covers, is_applied, sealed, taken_from
from terrace.controller.facts import finished_at
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    STATEFULSET,
    Kind,
    Manifest,
    is_deleting,
    uid_of,
)
from terrace.controller.model_volumes import volume_claim

Children = Mapping[tuple[Kind, str], Manifest]
"""Live objects by kind and name."""


@dataclass(frozen=True, slots=True)
class Write:
    """Apply a sealed manifest; ``uid`` is empty where nothing was seen under that name."""

    kind: Kind
    manifest: Manifest
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """Delete exactly this object."""

    kind: Kind
    manifest: Manifest
    is_orphaning: bool = False
    """What it owns stays, for its successor to adopt."""


def diff(
    wanted: Iterable[tuple[Kind, Manifest]],
    live: Children,
    *,
    refetch: AbstractSet[str] = frozenset(),
) -> list[Write | Removal]:
    """Writes and removals, in order; empty when nothing is to be done.

    ``refetch``: names of fetch Jobs that must run again. An object on its way out is waited for.
    """
    steps: list[Write | Removal] = []
    for kind, manifest in wanted:
        name = manifest["metadata"]["name"]
        present = live.get((kind, name))
        if present is None:
            steps.append(Write(kind, sealed(manifest)))
        elif is_deleting(present):
            continue
        elif kind == JOB and (name in refetch or _must_restart(present, manifest)):
            steps.append(Removal(kind, present))
        elif kind == STATEFULSET and not _same_claim_templates(present, manifest):
            # They cannot change: the set goes, its pods stay, and the next one adopts them.
            steps.append(Removal(kind, present, is_orphaning=True))
        else:
            settled = sealed(_settled(kind, present, manifest))
            if not is_applied(present, settled):
                steps.append(Write(kind, settled, uid_of(present)))
    return steps


def leftovers(
    wanted: Iterable[tuple[Kind, Manifest]], live: Children, pods: Iterable[Manifest]
) -> list[Removal]:
    """Jobs of files that the spec names no more, ConfigMaps of earlier plans, a needless budget.

    A ConfigMap goes when neither a set nor a pod mounts it any more.
    """
    named = {(kind, manifest["metadata"]["name"]) for kind, manifest in wanted}
    keep = {name for kind, name in named if kind == CONFIGMAP}
    is_placed = bool(keep)  # Where nothing is placed now, what runs goes on as it is.
    for (kind, _), manifest in live.items():
        if kind == STATEFULSET:
            keep |= mounted_configs(manifest["spec"]["template"]["spec"])
    for pod in pods:
        keep |= mounted_configs(pod["spec"])
    return [
        Removal(kind, manifest)
        for (kind, name), manifest in live.items()
        if not is_deleting(manifest)
        and (
            (kind == CONFIGMAP and is_placed and name not in keep)
            or (kind == BUDGET and is_placed and (kind, name) not in named)
            or (kind == JOB and (kind, name) not in named)
        )
    ]


def mounted_configs(pod_spec: Manifest) -> set[str]:
    """Names of the ConfigMaps that a pod mounts."""
    volumes = pod_spec.get("volumes") or ()
    return {volume["configMap"]["name"] for volume in volumes if volume.get("configMap")}


def _must_restart(job: Manifest, wanted: Manifest) -> bool:
    # A Job's template is immutable, and a new image or node selector is no reason to fetch again.
    live_pod, wanted_pod = job["spec"]["template"]["spec"], wanted["spec"]["template"]["spec"]
    if not covers(*(_claims(pod["volumes"]) for pod in (live_pod, wanted_pod))):
        return True  # The file belongs into another claim.
    is_same_fetch = covers(
        live_pod["containers"][0].get("env"), wanted_pod["containers"][0]["env"]
    ) and covers(live_pod["volumes"], wanted_pod["volumes"])
    return not is_same_fetch and not _is_complete(job)


def _claims(volumes: list[Manifest]) -> list[Manifest]:
    return [volume for volume in volumes if volume_claim(volume)]


def _same_claim_templates(live: Manifest, wanted: Manifest) -> bool:
    mine, theirs = (s["spec"].get("volumeClaimTemplates") or [] for s in (wanted, live))
    return covers(theirs, mine) and [*map(_class_of, theirs)] == [*map(_class_of, mine)]


def _class_of(claim: Manifest) -> str | None:
    # Leaving it out means the default class, so what is only in the live one counts as well.
    name: str | None = claim["spec"].get("storageClassName")
    return name


def _is_complete(job: Manifest) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return finished_at(job) is not None and any(
        condition.get("type") == "Complete" and condition.get("status") == "True"
        for condition in conditions
    )


def _settled(kind: Kind, live: Manifest, wanted: Manifest) -> Manifest:
    """The wanted manifest with what cannot change in place as it is."""
    if kind == JOB:
        spec = taken_from(live["spec"], wanted["spec"])
        return {**wanted, "spec": {**spec, "backoffLimit": wanted["spec"]["backoffLimit"]}}
    if kind == CLAIM:
        return {**wanted, "spec": _grown(live["spec"], wanted["spec"])}
    return wanted


def _grown(live: Manifest, wanted: Manifest) -> Manifest:
    # Claims may grow and nothing else.
    have, want = (spec["resources"]["requests"]["storage"] for spec in (live, wanted))
    storage = want if parse_quantity(want) > parse_quantity(have) else have
    kept: Manifest = taken_from(live, wanted)
    return {**kept, "resources": {"requests": {"storage": storage}}}
