"""Why the device part of a plan is as it is, in sentences with numbers.

Owns: the words. Does not own: the numbers (``split.py``, ``footprint.py``). Pure. Next:
``planned.py`` puts them between those of the tiers and those of host memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.planner.device_sizes import is_whole
from terrace.planner.nodes import format_bytes
from terrace.planner.split import HOST_BYTES_PER_SECOND

if TYPE_CHECKING:
    from terrace.planner.device_sizes import Sized
    from terrace.planner.devices import DeviceRoom
    from terrace.planner.footprint import Footprint
    from terrace.planner.geometry import DeviceSplit
    from terrace.planner.room import Room
    from terrace_runtime.contract import ModelFacts

GIGA = 1e9


def device_reasons(facts: ModelFacts, room: Room, sized: Sized, size: Footprint) -> tuple[str, ...]:
    """What is requested, what lies there and why no more; nothing without devices."""
    split, device = sized.split, room.device
    if split is None or device is None:
        return ()
    return (
        _room_reason(device),
        *device.reasons,
        _layers_reason(facts, split, device),
        *_cells_reasons(split),
        *_cut_reasons(split),
        _bytes_reason(device, size),
        (
            f"speed: about {_rounded(sized.speed)} tokens/s for one conversation, estimated from "
            f"the bytes that each token reads ({device.bytes_per_second / GIGA:,.0f} GB/s on the "
            f"device, {HOST_BYTES_PER_SECOND / GIGA:,.0f} GB/s on the host); what was measured "
            "stands in status.performance"
        ),
    )


def _room_reason(device: DeviceRoom) -> str:
    what = device.product or device.accelerator
    claim = f"claim template {device.claim_template}" if device.claim_template else ""
    asked = device.resource or claim
    memory = format_bytes(device.memory_bytes)
    if device.shares > 1:
        memory += f" as its share, one of {device.shares}"
    each = "each " if device.count > 1 else ""
    name = f"{what} ({asked})" if asked else what
    return (
        f"device: {device.count} x {name} {each}with {memory}, of which "
        f"{format_bytes(device.margin_bytes)} stay free for its driver and for estimates"
    )


def _layers_reason(facts: ModelFacts, split: DeviceSplit, device: DeviceRoom) -> str:
    count, where = facts.layer_count, "device" if device.count == 1 else "devices"
    if is_whole(split, count):
        return f"layers: all {count} and the output head on the {where}, with their KV cells"
    if split.moves_feed_forward:
        return _feed_forward_reason(count, split, where)
    cells = "with their KV cells" if split.kv_on_device else "without their KV cells"
    if split.device_layers > count:
        words = f"layers: all {count} and the output head on the {where}, {cells}"
        if split.expert_layers_on_host:
            # Facts of an older header reader do not count experts.
            some = f"{facts.experts_used} of {facts.experts}" if facts.experts else "few of them"
            words += (
                f", but the routed experts of the first {split.expert_layers_on_host}: a token "
                f"goes through {some}, so experts are what costs least on the host"
            )
        return words
    layers = split.device_layers - 1
    words = (
        f"layers: the last {layers} of {count} and the output head on the {where}, {cells}; the "
        f"first {count - layers} on the host"
    )
    if split.expert_layers_on_host:
        return f"{words}, and the routed experts of all layers"
    return words


def _cells_reasons(split: DeviceSplit) -> tuple[str, ...]:
    if split.kv_on_device:
        return ()
    words = (
        "KV cells and attention on the host: beside them fewer layers would fit the device, and a "
        "token reads the cells of its own conversation alone"
    )
    return (words,)


def _feed_forward_reason(count: int, split: DeviceSplit, where: str) -> str:
    layers = split.device_layers - 1
    which = f"all {count} layers" if layers == count else f"the last {layers} of {count} layers"
    return (
        f"layers: attention and KV cells of {which} and the output head on the {where}; "
        f"feed-forward weights, most of the model, in host memory"
    )


def _cut_reasons(split: DeviceSplit) -> tuple[str, ...]:
    if not split.tensor_split:
        return ()
    counts = " + ".join(f"{share:.0f}" for share in split.tensor_split)
    return (
        (
            f"tensor split {counts}: layers of each device, the head counted as one, so that the "
            "fullest device has the most room"
        ),
    )


def _bytes_reason(device: DeviceRoom, size: Footprint) -> str:
    fullest = max(size.devices, key=lambda each: each.limit_bytes)
    parts = (
        f"weights {format_bytes(fullest.weights_bytes)}, KV cells "
        f"{format_bytes(fullest.kv_bytes)}, compute {format_bytes(fullest.compute_bytes)}"
    )
    which = "on the device" if device.count == 1 else "on the fullest device"
    left = device.memory_bytes - device.margin_bytes - fullest.limit_bytes
    return f"{which}: {parts}; {format_bytes(max(0, left))} are left"


def _rounded(speed: float) -> str:
    """Two digits are more than such an estimate has."""
    if speed < 10:  # noqa: PLR2004 - one digit before the point
        return f"{speed:.2g}"
    return f"{round(speed, -1 if speed >= 100 else 0):,.0f}"  # noqa: PLR2004 - three of them
