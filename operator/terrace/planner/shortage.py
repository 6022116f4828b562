"""What is missing where nothing fits, and what would fit: the words of NoPlacement.

Owns: the message for a room that is too small, on its devices or on its host. Does not own: what
fits (``shapes.py``, ``split.py``). Pure. Next: the condition ``Placed``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.offload import KvTypes
from terrace.planner.device_sizes import chosen, fullest, searched
from terrace.planner.footprint import footprint
from terrace.planner.nodes import format_bytes
from terrace.planner.room import NoPlacement
from terrace.planner.sizing import Size, smaller_sizes
from terrace.planner.tiers import DEFAULT_PROFILE

if TYPE_CHECKING:
    from terrace.api.offload import Profile
    from terrace.planner.devices import DeviceRoom
    from terrace.planner.geometry import DeviceSplit, Shape
    from terrace.planner.room import Room
    from terrace.planner.shapes import Wish

MAX_DEVICES = 16


def too_small(wish: Wish, room: Room) -> NoPlacement:
    """How much is missing for the smallest size allowed, and what would fit."""
    *_, smallest = wish.sizes(room)
    if room.device is None:
        return _host_too_small(wish, room, smallest, None)
    split = _split(wish, room.device, smallest)
    if split is None:
        return _device_too_small(wish, room, room.device, smallest)
    return _host_too_small(wish, room, smallest, split)


def _split(wish: Wish, device: DeviceRoom, size: Size) -> DeviceSplit | None:
    found = chosen(wish, device, size)
    return found.split if found else None


def _profile(wish: Wish) -> Profile:
    return wish.offload.profile or DEFAULT_PROFILE


def _device_too_small(wish: Wish, room: Room, device: DeviceRoom, smallest: Size) -> NoPlacement:
    one = searched(wish, device, smallest)
    layers = one.layer_count + 1
    is_only = _profile(wish) == "DeviceOnly"
    experts = one.layer_count if one.has_experts and not is_only else 0
    missing = one.missing_bytes(experts, layers if is_only else 2)
    what = "all layers and KV cells" if is_only else "not even one layer and its KV cells"
    which = f"{device.count} x {device.product or device.accelerator}"
    nearest = f" of {device.preferred_nodes[0]}" if device.preferred_nodes else ""
    have = (
        f"{which}{nearest} with {format_bytes(device.memory_bytes)}, "
        f"{format_bytes(device.margin_bytes)} of it kept free"
    )
    advice = _device_advice(wish, device, smallest)
    fits = "do not fit" if is_only else "fit"
    return NoPlacement(
        Reason.NO_NODE_FITS,
        f"flavor {room.flavor.name}: with {smallest}, {what} {fits} on {have}: "
        f"{format_bytes(missing)} are missing on the device; {advice}",
        missing,
    )


def _device_advice(wish: Wish, device: DeviceRoom, smallest: Size) -> str:
    """The first way out that works, by what it costs."""
    for size in smaller_sizes(smallest):
        if _split(wish, device, size):
            return f"{size} would fit"
    if wish.kv_types == KvTypes() and wish.takes_quantised_cells:
        cells = wish.offload.model_copy(update={"kv_types": KvTypes(key="q8_0", value="q8_0")})
        if _split(replace(wish, offload=cells), device, smallest):
            return "offload.kvTypes q8_0 for keys and values would fit"
    most = device.count if device.is_alone else MAX_DEVICES
    for count in range(device.count + 1, most + 1):
        if _split(wish, replace(device, count=count), smallest):
            return f"count {count} in the flavor would fit" + _or_auto(wish)
    return "it takes a larger device" + _or_auto(wish)


def _or_auto(wish: Wish) -> str:
    if _profile(wish) != "DeviceOnly":
        return ""
    return "; or offload.profile Auto, which keeps in host memory what does not fit"


def _host_too_small(
    wish: Wish, room: Room, smallest: Size, split: DeviceSplit | None
) -> NoPlacement:
    def least(size: Size) -> Shape | None:
        """The shape of ``size`` that takes least; None where its layers do not fit the devices."""
        there = split
        if room.device is not None:
            there = fullest(wish, room.device, size)
            if there is None:
                return None
        *_, found = wish.choices(size, there)
        return found

    def needs(size: Size) -> int:
        shape = least(size)
        if shape is None:
            return 1 << 62
        return footprint(wish.facts, shape, wish.extras_of(size)).limit_bytes

    missing = needs(smallest) - room.memory_bytes
    fits = next((s for s in smaller_sizes(smallest) if needs(s) <= room.memory_bytes), None)
    advice = f"{fits} would fit" if fits else "no smaller context would fit; it takes a larger node"
    shape = least(smallest)
    tiers = shape.tiers if shape else None
    if not fits and tiers and tiers.weights != "paged" and not _lies_on_device(wish, split):
        advice += ", or offload.profile DiskHeavy, which reads weights from disk as it goes"
    extra = (
        f" and a host tier of {format_bytes(tiers.host_bytes)}"
        if tiers and tiers.host_bytes
        else ""
    )
    where = " in host memory" if split else ""
    return NoPlacement(
        Reason.NO_NODE_FITS,
        f"flavor {room.flavor.name}: {smallest}{extra} needs {format_bytes(needs(smallest))}{where}"
        f", {room.memory_words}: {format_bytes(missing)} are missing; {advice}",
        missing,
    )


def _lies_on_device(wish: Wish, split: DeviceSplit | None) -> bool:
    """Whether no weights are left that could be paged."""
    if split is None:
        return False
    return split.device_layers > wish.facts.layer_count and not split.expert_layers_on_host
