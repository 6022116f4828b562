"""A choice that fits its room, as the plan that replicas run with.

Owns: OffloadPlan's numbers from shape, bytes and room. Does not own: the choice
(``placement.py``), the words (``reasons.py``, ``device_reasons.py``). Pure. Next:
``sticky.decide``, then ``terrace.controller.manifests``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api.offload import Disk, Offload
from terrace.planner.device_reasons import device_reasons
from terrace.planner.plan import (
    BATCH_TOKENS,
    PREFILL_TOKENS,
    DevicePlan,
    KvVolume,
    OffloadPlan,
)
from terrace.planner.reasons import byte_reasons
from terrace.planner.rooms import REQUEST_MILLIS_PER_THREAD
from terrace.planner.tiers import volume_bytes

if TYPE_CHECKING:
    from terrace.planner.device_sizes import Sized
    from terrace.planner.footprint import Footprint
    from terrace.planner.geometry import DeviceSplit, Shape
    from terrace.planner.room import Room
    from terrace.planner.shapes import Wish


MAX_REASONS, MAX_REASON = 48, 600
DEVICE_THREADS = 4
"""Threads by default where the host computes no layer."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits a room, and its bytes."""

    room: Room
    sized: Sized
    shape: Shape
    size: Footprint


def planned(wish: Wish, fit: Fit, *, inputs: str, skipped: tuple[str, ...]) -> OffloadPlan:
    """The plan; ``skipped`` says why flavors before this one were not taken."""
    room, shape, size = fit.room, fit.shape, fit.size
    tiers, limit = shape.tiers, _limit(size, shape, room)
    extras, threads = wish.extras_of(fit.sized.size), _threads(wish, fit)
    return OffloadPlan(
        inputs=inputs,
        flavor=room.flavor.name,
        context_tokens=shape.context_tokens,
        parallel=shape.parallel,
        batch_tokens=BATCH_TOKENS,
        ubatch_tokens=shape.ubatch_tokens,
        prefill_tokens=PREFILL_TOKENS,
        threads=threads.count,
        kv_key_type=shape.kv_key_type,
        kv_value_type=shape.kv_value_type,
        kv_unified=tiers.is_unified,
        kv_auto=tiers.is_auto,
        weights=tiers.weights,
        block_tokens=tiers.block_tokens,
        checkpoint_tokens=tiers.checkpoint_tokens,
        checkpoint_count=tiers.checkpoint_count,
        host_bytes=tiers.host_bytes,
        disk_bytes=tiers.disk_bytes,
        prefetch_bytes=tiers.prefetch_bytes,
        volume=_volume(wish.offload, tiers.disk_bytes),
        device=_device(room, shape.split, size, wish.facts.layer_count) if shape.split else None,
        projector_bytes=extras.projector.total,
        draft_bytes=extras.draft_bytes,
        adapter_bytes=extras.adapter_bytes,
        attempt=wish.model.attempt,
        weights_bytes=size.weights_bytes,
        host_weights_bytes=size.host_weights_bytes if shape.split else 0,
        repacked_bytes=size.repacked_bytes,
        kv_bytes=size.kv_bytes,
        compute_bytes=size.compute_bytes,
        base_bytes=size.base_bytes,
        tiers_bytes=size.tiers_bytes,
        anonymous_bytes=size.anonymous_bytes,
        corrected_host_bytes=extras.correction.host_bytes,
        corrected_device_bytes=extras.correction.device_bytes if shape.split else 0,
        memory_request_bytes=size.request_bytes,
        memory_limit_bytes=limit,
        cpu_millis=threads.cpu_millis,
        preferred_nodes=room.device.preferred_nodes if room.device else (),
        reasons=bounded(
            (
                *skipped,
                *fit.sized.size.reasons,
                *tiers.reasons[:1],
                *device_reasons(wish.facts, room, fit.sized, size),
                *tiers.reasons[1:],
                *wish.speculation_reasons,
                *byte_reasons(wish.facts, shape, size, limit, extras),
                _steps_reason(shape),
                f"threads {threads.count}: {threads.words}",
            )
        ),
    )


@dataclass(frozen=True, slots=True)
class _Threads:
    """Threads of one replica and the CPU that it requests for them."""

    count: int
    cpu_millis: int
    words: str


def _threads(wish: Wish, fit: Fit) -> _Threads:
    """As the room says; few where all layers are on devices and the user wrote no number.

    Images are encoded by the host's threads wherever the model is.
    """
    room = fit.room
    has_work = wish.model.projector is not None
    is_idle = fit.sized.is_whole(wish) and room.flavor.host.cpu is None and not has_work
    if not is_idle or room.threads <= DEVICE_THREADS:
        return _Threads(room.threads, room.cpu_millis, room.cpu_words)
    millis = min(room.cpu_millis, DEVICE_THREADS * REQUEST_MILLIS_PER_THREAD)
    words = "all layers are on the device, which leaves the CPU little to do; host.cpu is not set"
    return _Threads(DEVICE_THREADS, millis, words)


def bounded(reasons: tuple[str, ...]) -> tuple[str, ...]:
    """``reasons`` as far as a status has room for them; other flavors may have had much to say."""
    short = [one if len(one) <= MAX_REASON else f"{one[: MAX_REASON - 4]} ..." for one in reasons]
    return tuple(short[:MAX_REASONS])


def _steps_reason(shape: Shape) -> str:
    words = (
        f"steps: {BATCH_TOKENS} tokens at most, {PREFILL_TOKENS} of them of prompts while other "
        "conversations answer"
    )
    if shape.ubatch_tokens == BATCH_TOKENS:
        return words
    return (
        f"{words}; computed {shape.ubatch_tokens} at a time, because larger graphs do not fit the "
        "device: prompts are read slower"
    )


def _device(room: Room, split: DeviceSplit, size: Footprint, layers: int) -> DevicePlan | None:
    device = room.device
    if device is None:
        return None
    return DevicePlan(
        accelerator=device.accelerator,
        backend=device.backend,
        product=device.product,
        resource=device.resource,
        count=device.count,
        claim_template=device.claim_template,
        shares=device.shares,
        memory_bytes=device.memory_bytes,
        device_layers=split.device_layers,
        layers=layers,
        expert_layers_on_host=split.expert_layers_on_host,
        feed_forward_on_host=split.moves_feed_forward,
        kv_on_device=split.kv_on_device,
        tensor_split=split.tensor_split,
        weights_bytes=sum(each.weights_bytes for each in size.devices),
        kv_bytes=sum(each.kv_bytes for each in size.devices),
        compute_bytes=sum(each.compute_bytes for each in size.devices),
        margin_bytes=device.margin_bytes,
        node_labels=device.node_labels,
    )


def _limit(size: Footprint, shape: Shape, room: Room) -> int:
    """The memory limit. Paged weights may fill what the flavor has left with their pages."""
    if shape.tiers.weights != "paged":
        return size.limit_bytes
    whole = size.limit_bytes + size.host_weights_bytes - size.mapped_bytes
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
