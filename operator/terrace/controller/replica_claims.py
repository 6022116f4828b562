"""The claims of replicas, as for disk tiers: templates, and what becomes of claims that exist.

Owns: which templates a set has; growing claims, which the set's controller never does; the
owner of claims that no set has any more. Does not own: the volume's size (``planner/tiers.py``),
making claims (the StatefulSet controller), writing (``apply.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.quantity import parse_bytes
from terrace.controller import templates
from terrace.controller.diff import Write
from terrace.controller.kinds import CLAIM, MODEL, Manifest, is_deleting, key_of, uid_of
from terrace.controller.model_volumes import claim_template

if TYPE_CHECKING:
    from terrace.planner.plan import KvVolume


def claim_templates(volume: KvVolume | None, own: Manifest | None) -> list[Manifest]:
    """Claims that each replica has: of its disk tier, and ``own``, of its model files."""
    kv = []
    if volume is not None and not volume.claim and not volume.is_ephemeral:
        size = templates.volume_size(volume)
        kv = [claim_template(templates.KV_VOLUME, size, volume.storage_class)]
    return kv + ([own] if own is not None else [])


def claim_template_fields(wanted: list[Manifest]) -> Manifest:
    """Fields of a StatefulSet's spec: a claim per replica; nothing where none is to be made.

    The set's controller labels the claims with the set's selector.
    """
    if not wanted:
        return {}
    return {
        # Blocks hold conversations: they stay while the model is scaled down, not when it is gone.
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Retain", "whenDeleted": "Delete"},
        "volumeClaimTemplates": wanted,
    }


def claim_steps(
    model: Manifest, live: list[Manifest], set_name: str, wanted: list[Manifest]
) -> list[Write]:
    """What to write to the model's claims: the set's own grow, strays get the model as owner.

    ``wanted``: the set's templates. A stray is a claim that no set owns: making a set anew leaves
    it so, and where the new one has no template, nothing would ever delete it.
    """
    sizes = {f"{each['metadata']['name']}-{set_name}": _size(each) for each in wanted}
    steps = []
    for claim in live:
        if is_deleting(claim):
            continue
        have = _size(claim)
        size = sizes.get(_family(claim))
        grows = size is not None and parse_bytes(have) < parse_bytes(size)
        storage = size if size is not None and grows else have
        owners = claim["metadata"].get("ownerReferences") or []
        adopts = not owners and size is None
        is_adopted = any(owner.get("uid") == uid_of(model) for owner in owners)
        if storage != have or adopts:
            # What we applied once and leave out now would go.
            owner = [_owner(model)] if adopts or is_adopted else []
            steps.append(Write(CLAIM, _claim(claim, storage, owner), uid_of(claim)))
    return steps


def _size(claim: Manifest) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _family(claim: Manifest) -> str:
    """TEMPLATE-SET of a replica's claim; empty for any other."""
    family, _, ordinal = key_of(claim).name.rpartition("-")
    return family if ordinal.isdigit() else ""


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
