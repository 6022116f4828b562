"""Which flavor a model gets, and with what plan: the first flavor with a node it fits on.

Owns: the order of flavors and the message when nothing fits. Does not own: bytes
(``footprint.py``), what a flavor has (``rooms.py``), defaults (``sizing.py``), binding
(kube-scheduler). Pure. Next: ``sticky.decide``, then ``terrace.controller.manifests``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.offload import Disk, KvTypes, Offload, overridden
from terrace.planner.footprint import Footprint, footprint
from terrace.planner.geometry import KV_BLOCK, Shape
from terrace.planner.nodes import format_bytes
from terrace.planner.plan import (
    BATCH_TOKENS,
    PREFILL_TOKENS,
    KvVolume,
    OffloadPlan,
)
from terrace.planner.reasons import byte_reasons
from terrace.planner.rooms import NoPlacement, Room, rooms_of
from terrace.planner.shapes import MIN_CONTEXT, Wish
from terrace.planner.sizing import Size, sizes, smaller_sizes
from terrace.planner.sticky import inputs_digest
from terrace.planner.tiers import contradiction, volume_bytes

if TYPE_CHECKING:
    from terrace.api.model import ModelSpec
    from terrace.api.pool import Flavor, PoolSpec
    from terrace.planner.inputs import Cluster, ModelInputs
    from terrace_runtime.contract import ModelFacts


@dataclass(frozen=True, slots=True)
class Placement:
    """The flavor a model gets and the plan of its replicas."""

    flavor: Flavor
    plan: OffloadPlan


def place(model: ModelInputs, pool_spec: PoolSpec, cluster: Cluster) -> Placement | NoPlacement:
    """Choose a flavor and a plan."""
    facts, model_spec = model.facts, model.spec
    offload = overridden(pool_spec.offload, model_spec.offload)
    wish = Wish(facts, model_spec, offload)
    refusal = (
        _refuse_context(facts, model_spec)
        or _refuse_kv_types(facts, wish.kv_types)
        or _refuse_offload(wish)
    )
    if refusal:
        return refusal
    failures: list[NoPlacement] = []
    for flavor in pool_spec.flavors:
        rooms = rooms_of(flavor, offload, facts, cluster)
        if isinstance(rooms, NoPlacement):
            failures.append(rooms)
            continue
        room = rooms[0]
        for size, shape in wish.shapes():
            if footprint(facts, shape).limit_bytes <= room.memory_bytes:
                inputs = inputs_digest(
                    facts, model_spec, pool_spec, flavor.name, model.extra_digests
                )
                skipped = tuple(each.message for each in failures)
                return Placement(flavor, _plan(wish, shape, room, inputs, skipped + size.reasons))
        failures.append(_too_small(wish, room))
    short = [each for each in failures if each.missing_bytes]
    message = "; ".join(each.message for each in failures)
    missing = min((each.missing_bytes for each in short), default=0)
    reasons = {each.reason for each in failures}
    return NoPlacement(
        reasons.pop() if len(reasons) == 1 else Reason.NO_NODE_FITS,
        message,
        missing,
        min((each.missing_devices for each in failures if each.missing_devices), default=0),
    )


def _refuse_context(facts: ModelFacts, spec: ModelSpec) -> NoPlacement | None:
    wanted, own = spec.context.length, facts.context_length
    if own < MIN_CONTEXT:
        message = f"the model was trained for {own} tokens; at least {MIN_CONTEXT} are needed"
    elif wanted is not None and wanted > own:
        message = (
            f"spec.context.length is {wanted:,} tokens, the model was trained for {own:,}; "
            f"set it to {own:,} or less"
        )
    else:
        return None
    return NoPlacement(Reason.CONTEXT_TOO_LONG, message)


def _refuse_kv_types(facts: ModelFacts, kv_types: KvTypes) -> NoPlacement | None:
    """llama.cpp quantises each head on its own, in blocks of KV_BLOCK values."""
    for run in facts.layers:
        heads = (("key", kv_types.key, run.key_length), ("value", kv_types.value, run.value_length))
        for field, kind, length in heads:
            if kind != "f16" and run.kv_heads and length % KV_BLOCK:
                return NoPlacement(
                    Reason.UNSUPPORTED_KV_TYPE,
                    f"offload.kvTypes.{field} {kind} needs heads of a multiple of {KV_BLOCK} "
                    f"values, this model's have {length}; use f16",
                )
    return None


def _refuse_offload(wish: Wish) -> NoPlacement | None:
    problem = contradiction(wish.offload, wish.bytes_per_token)
    if not problem:
        return None
    whose = "the model's settings over its pool's"
    return NoPlacement(Reason.INVALID_OFFLOAD, f"{problem} ({whose})")


def _plan(
    wish: Wish, shape: Shape, room: Room, inputs: str, reasons: tuple[str, ...]
) -> OffloadPlan:
    size, tiers = footprint(wish.facts, shape), shape.tiers
    limit = _limit(size, shape, room)
    return OffloadPlan(
        inputs=inputs,
        flavor=room.flavor.name,
        context_tokens=shape.context_tokens,
        parallel=shape.parallel,
        batch_tokens=BATCH_TOKENS,
        ubatch_tokens=shape.ubatch_tokens,
        prefill_tokens=PREFILL_TOKENS,
        threads=room.threads,
        kv_key_type=shape.kv_key_type,
        kv_value_type=shape.kv_value_type,
        kv_unified=tiers.is_unified,
        weights=tiers.weights,
        block_tokens=tiers.block_tokens,
        host_bytes=tiers.host_bytes,
        disk_bytes=tiers.disk_bytes,
        prefetch_bytes=tiers.prefetch_bytes,
        volume=_volume(wish.offload, tiers.disk_bytes),
        weights_bytes=size.weights_bytes,
        repacked_bytes=size.repacked_bytes,
        kv_bytes=size.kv_bytes,
        compute_bytes=size.compute_bytes,
        base_bytes=size.base_bytes,
        tiers_bytes=size.tiers_bytes,
        memory_request_bytes=size.request_bytes,
        memory_limit_bytes=limit,
        cpu_millis=room.cpu_millis,
        reasons=(
            *reasons,
            *tiers.reasons,
            *wish.speculation_reasons,
            *byte_reasons(wish.facts, shape, size, limit),
            f"threads {room.threads}: {room.cpu_words}",
        ),
    )


def _limit(size: Footprint, shape: Shape, room: Room) -> int:
    """The memory limit. Paged weights may fill what the flavor has left with their pages."""
    if shape.tiers.weights != "paged":
        return size.limit_bytes
    whole = size.limit_bytes + size.weights_bytes - size.mapped_bytes
    return min(whole, room.memory_bytes)


def _volume(offload: Offload, disk_bytes: int) -> KvVolume | None:
    if not disk_bytes:
        return None
    disk = offload.disk or Disk()
    return KvVolume(
        bytes=volume_bytes(disk_bytes),
        storage_class=disk.storage_class_name,
        claim=disk.claim_name or "",
        is_ephemeral=bool(disk.ephemeral),
    )


def _too_small(wish: Wish, room: Room) -> NoPlacement:
    """Say how much is missing for the smallest size allowed, and what would fit."""

    def needs(size: Size) -> int:
        *_, least = wish.choices(size)
        return footprint(wish.facts, least).limit_bytes

    *_, smallest = sizes(wish.facts, wish.spec.context)
    missing = needs(smallest) - room.memory_bytes
    fits = next((s for s in smaller_sizes(smallest) if needs(s) <= room.memory_bytes), None)
    advice = f"{fits} would fit" if fits else "no smaller context would fit; it takes a larger node"
    *_, least = wish.choices(smallest)
    if not fits and least.tiers.weights != "paged":
        advice += ", or offload.profile DiskHeavy, which reads weights from disk as it goes"
    host = least.tiers.host_bytes
    extra = f" and a host tier of {format_bytes(host)}" if host else ""
    return NoPlacement(
        Reason.NO_NODE_FITS,
        f"flavor {room.flavor.name}: {smallest}{extra} needs {format_bytes(needs(smallest))}, "
        f"{room.memory_words}: {format_bytes(missing)} are missing; {advice}",
        missing,
    )
