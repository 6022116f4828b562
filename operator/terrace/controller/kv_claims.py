"""The claims of the disk tier: the set's template, and what becomes of claims that exist.

Owns: the template of a replica's claim; growing claims, which the set's controller never does; the
owner of claims that no set has any more. Does not own: the volume's size (``planner/tiers.py``),
making claims (the StatefulSet controller), writing (``apply.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from terrace.api.quantity import parse_bytes
from terrace.controller import templates
from terrace.controller.diff import Write
from terrace.controller.kinds import CLAIM, MODEL, Manifest, is_deleting, key_of, uid_of

if TYPE_CHECKING:
    from terrace.planner.plan import KvVolume


def claim_template_fields(volume: KvVolume | None) -> Manifest:
    """Fields of a StatefulSet's spec: a claim per replica; nothing where none is to be made.

    The set's controller labels the claims with the set's selector.
    """
    if not _is_claimed(volume):
        return {}
    spec: Manifest = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": templates.volume_size(volume)}},
    }
    if volume.storage_class is not None:
        spec["storageClassName"] = volume.storage_class
    template = {
        "apiVersion": CLAIM.api_version,
        "kind": CLAIM.kind,
        "metadata": {"name": templates.KV_VOLUME},
    }
    return {
        # Blocks hold conversations: they stay while the model is scaled down, not when it is gone.
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Retain", "whenDeleted": "Delete"},
        "volumeClaimTemplates": [{**template, "spec": spec}],
    }


def claim_steps(
    model: Manifest, live: list[Manifest], set_name: str, volume: KvVolume | None
) -> list[Write]:
    """What to write to the model's claims: the set's own grow, strays get the model as owner.

    A stray is a claim that no set owns: making a set anew leaves it so, and where the new one has
    no template, nothing would ever delete it.
    """
    steps = []
    for claim in live:
        if is_deleting(claim):
            continue
        storage = have = str(claim["spec"]["resources"]["requests"]["storage"])
        is_own = False
        if _is_claimed(volume) and _is_claim_of(claim, set_name):
            is_own = True
            storage = templates.volume_size(volume) if parse_bytes(have) < volume.bytes else have
        owners = claim["metadata"].get("ownerReferences") or []
        adopts = not owners and not is_own
        is_adopted = any(owner.get("uid") == uid_of(model) for owner in owners)
        if storage != have or adopts:
            # What we applied once and leave out now would go.
            owner = [_owner(model)] if adopts or is_adopted else []
            steps.append(Write(CLAIM, _claim(claim, storage, owner), uid_of(claim)))
    return steps


def _is_claimed(volume: KvVolume | None) -> TypeGuard[KvVolume]:
    return volume is not None and not volume.claim and not volume.is_ephemeral


def _is_claim_of(claim: Manifest, set_name: str) -> bool:
    prefix, _, ordinal = key_of(claim).name.rpartition("-")
    return prefix == f"{templates.KV_VOLUME}-{set_name}" and ordinal.isdigit()


def _claim(live: Manifest, storage: str, owners: list[Manifest]) -> Manifest:
    """Only what we own of a claim that the set's controller made."""
    key = key_of(live)
    metadata: Manifest = {"name": key.name, "namespace": key.namespace}
    if owners:
        metadata["ownerReferences"] = owners
    return {
        "apiVersion": CLAIM.api_version,
        "kind": CLAIM.kind,
        "metadata": metadata,
        "spec": {"resources": {"requests": {"storage": storage}}},
    }


def _owner(model: Manifest) -> Manifest:
    return {
        "apiVersion": MODEL.api_version,
        "kind": MODEL.kind,
        "name": key_of(model).name,
        "uid": uid_of(model),
    }
