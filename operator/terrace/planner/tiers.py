"""What ``spec.offload`` means in bytes: how weights lie, and the tiers below the KV cells.

Owns: the meaning of each profile, the defaults, what contradicts itself. Does not own: which choice
fits (``placement.py``), what it takes in all (``footprint.py``). Pure. What the user wrote is never
changed; a default shrinks, down to none, before context does. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from terrace.api.quantity import parse_bytes
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.offload import Offload, Profile

MIB, GIB = 1 << 20, 1 << 30
Weights = Literal["mapped", "loaded", "paged"]

DEFAULT_PROFILE: Profile = "Auto"
DEFAULT_BLOCK_TOKENS = 32
DEFAULT_CHECKPOINT_TOKENS = 512
DEFAULT_CHECKPOINT_COUNT = 32
MIN_HOST_BYTES = 64 * MIB
"""Least host tier by default: below, parking one conversation would throw all others out."""
MAX_PREFETCH_BYTES = 64 * MIB
"""Most bytes read ahead by default: a second of a slow disk."""
DISK_HEAVY_BYTES = 16 * GIB
MAX_DISK_BLOCKS = 1_000_000
"""The runtime's index of the disk tier holds no more (``kv/disk/budget.py``)."""
VOLUME_RESERVE_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a profile means."""

    weights: Weights
    """Of what lies on the host."""
    quarters: int
    """The host tier by default, in quarters of the KV cells."""
    most_bytes: int
    """Most bytes of that default."""
    disk_bytes: int = 0
    device_share: float = 1.0
    """Of each device's memory: what the plan may take."""


PROFILES: dict[Profile, Meaning] = {
    "Auto": Meaning("mapped", 1, GIB),
    "Balanced": Meaning("mapped", 4, 4 * GIB),
    "HostHeavy": Meaning("loaded", 16, 16 * GIB),
    "DiskHeavy": Meaning("paged", 1, GIB, DISK_HEAVY_BYTES),
    "DeviceOnly": Meaning("loaded", 0, 0),
}
"""On nodes without devices: the KV cells lie in host memory as well."""
DEVICE_PROFILES: dict[Profile, Meaning] = {
    "Auto": Meaning("mapped", 4, 4 * GIB),
    "Balanced": Meaning("mapped", 8, 16 * GIB, device_share=0.75),
    "HostHeavy": Meaning("loaded", 16, 32 * GIB, device_share=0.75),
    "DiskHeavy": Meaning("paged", 4, 4 * GIB, DISK_HEAVY_BYTES),
    "DeviceOnly": Meaning("loaded", 0, 0),
}
"""On devices: what leaves their cells goes to the host tier, which is the second."""
_ON_DEVICES: dict[Profile, str] = {
    "Auto": "; the split over device and host that is expected to be fastest",
    "Balanced": "; a quarter of the device stays free, and the host tier is larger",
    "HostHeavy": "; most weights in host memory, with the largest host tier",
    "DiskHeavy": "; weights that do not fit the device are paged from disk",
    "DeviceOnly": "; all weights and KV cells on the device",
}
_SHARES = {
    1: "a quarter of the KV cells",
    4: "as much as the KV cells",
    8: "2 x the KV cells",
    16: "4 x the KV cells",
}


@dataclass(frozen=True, slots=True)
class Tiers:
    """One choice of tiers; the default is a replica that keeps nothing below its KV cells."""

    weights: Weights = "mapped"
    is_unified: bool = False
    is_auto: bool = False
    """Split cells that become unified while most of what runs is shared."""
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    checkpoint_tokens: int = DEFAULT_CHECKPOINT_TOKENS
    """Of a prompt, between two states kept of a model without blocks."""
    checkpoint_count: int = DEFAULT_CHECKPOINT_COUNT
    host_bytes: int = 0
    disk_bytes: int = 0
    prefetch_bytes: int = 0
    reasons: tuple[str, ...] = ()


NO_TIERS = Tiers()


def meaning_of(offload: Offload, *, has_device: bool, whole_states: bool = False) -> Meaning:
    """What the profile in ``offload`` means.

    ``whole_states``: of a model whose states are kept whole. A quarter of the KV cells would hold
    one of four sequences, and nothing beside it.
    """
    profiles = DEVICE_PROFILES if has_device else PROFILES
    meaning = profiles[offload.profile or DEFAULT_PROFILE]
    if whole_states and meaning.quarters == 1:
        return replace(meaning, quarters=4, most_bytes=2 * GIB)
    return meaning


def tier_choices(
    offload: Offload,
    kv_bytes: int,
    bytes_per_token: int,
    *,
    has_device: bool = False,
    whole_states: bool = False,
) -> Iterator[Tiers]:
    """Choices for one size of context, in order of preference; at least one.

    ``offload``: the model's settings over its pool's, without contradiction. ``kv_bytes``: the KV
    cells of all sequences. ``bytes_per_token``: keys and values of one token.
    """
    profile = offload.profile or DEFAULT_PROFILE
    meaning = meaning_of(offload, has_device=has_device, whole_states=whole_states)
    block_tokens = offload.kv_block_tokens or DEFAULT_BLOCK_TOKENS
    block_bytes = block_tokens * bytes_per_token
    disk_bytes, why_disk = _disk(offload, profile)
    for host_bytes, why_host in _host(offload, meaning, kv_bytes, has_disk=disk_bytes > 0):
        reasons = [
            _profile_reason(offload, profile, has_device=has_device),
            _host_reason(host_bytes, why_host),
        ]
        prefetch_bytes = 0
        if host_bytes:
            count = f"{host_bytes // max(1, block_bytes):,} blocks"
            reasons[-1] += f"; {count} of {block_tokens} tokens ({format_bytes(block_bytes)} each)"
        reasons.append(why_disk)
        if disk_bytes:
            reasons[-1] = _disk_reason(disk_bytes, why_disk, block_bytes)
            prefetch_bytes, why = _prefetch(offload, host_bytes)
            reasons.append(f"prefetch window {format_bytes(prefetch_bytes)}: {why}")
        yield Tiers(
            weights=meaning.weights,
            is_unified=offload.kv_layout == "Unified",
            block_tokens=block_tokens,
            checkpoint_tokens=offload.checkpoint_tokens or DEFAULT_CHECKPOINT_TOKENS,
            checkpoint_count=_or(offload.checkpoint_count, DEFAULT_CHECKPOINT_COUNT),
            host_bytes=host_bytes,
            disk_bytes=disk_bytes,
            prefetch_bytes=prefetch_bytes,
            reasons=tuple(reasons),
        )


def disk_blocks(disk_bytes: int, block_bytes: int) -> int:
    """Most blocks that a disk tier holds."""
    return min(MAX_DISK_BLOCKS, disk_bytes // max(1, block_bytes))


def volume_bytes(disk_bytes: int) -> int:
    """Size of the volume for a disk tier: a 16th more and 256 MiB, in whole MiB.

    A file system takes up to 5 % for itself, segments hold headers, and the tier stops spilling
    before the volume is full.
    """
    size = disk_bytes + disk_bytes // 16 + VOLUME_RESERVE_BYTES
    return -(-size // MIB) * MIB


def contradiction(offload: Offload, bytes_per_token: int) -> str:
    """What the model's and the pool's settings say together that cannot be; empty when nothing.

    One object alone is checked by the API server (``api/offload.py``); two may still disagree, and
    only here the size of a block is known.
    """
    host, disk = _written(offload.spill_threshold), _written(offload.max_disk)
    window = _written(offload.prefetch_window)
    profile = offload.profile or DEFAULT_PROFILE
    block_bytes = (offload.kv_block_tokens or DEFAULT_BLOCK_TOKENS) * bytes_per_token
    has_disk = bool(PROFILES[profile].disk_bytes if disk is None else disk)
    if profile == "DeviceOnly" and (host or disk):
        field = "spillThreshold" if host else "maxDisk"
        return f"profile DeviceOnly keeps nothing outside of the device; drop offload.{field}"
    if offload.disk is not None and disk is None and not has_disk:
        return "offload.disk has no effect without a size: set offload.maxDisk"
    if has_disk and host == 0:
        return "offload.spillThreshold is 0, but blocks reach the disk through the host tier"
    if host and host < 2 * block_bytes:
        return (
            f"offload.spillThreshold {offload.spill_threshold} must hold two KV blocks of "
            f"{format_bytes(block_bytes)} at least: raise it or lower offload.kvBlockTokens"
        )
    if window and host is not None and has_disk and window > host:
        return (
            f"offload.prefetchWindow {offload.prefetch_window} must not be above "
            f"offload.spillThreshold {offload.spill_threshold}: what is read ahead goes there"
        )
    return ""


def _host(
    offload: Offload, meaning: Meaning, kv_bytes: int, *, has_disk: bool
) -> Iterator[tuple[int, str]]:
    written, profile = _written(offload.spill_threshold), offload.profile or DEFAULT_PROFILE
    if written is not None:
        yield written, "offload.spillThreshold"
        return
    if not meaning.quarters:
        yield 0, f"profile {profile}"
        return
    # What is read ahead must find room.
    least = max(MIN_HOST_BYTES, _written(offload.prefetch_window) or 0 if has_disk else 0)
    share = kv_bytes * meaning.quarters // 4 // MIB * MIB
    size = max(least, min(meaning.most_bytes, share))
    words = f"{_SHARES[meaning.quarters]} with profile {profile}"
    why = f"{words}, {format_bytes(least)} to {format_bytes(max(least, meaning.most_bytes))}"
    while True:
        yield size, why
        if size == least:
            break
        smaller = max(least, size // 2)
        why = f"{words}, but {format_bytes(size)} do not fit"
        size = smaller
    if not has_disk:
        yield 0, f"{format_bytes(least)} do not fit"


def _disk(offload: Offload, profile: Profile) -> tuple[int, str]:
    written = _written(offload.max_disk)
    if written:
        return written, "offload.maxDisk"
    if written is None and PROFILES[profile].disk_bytes:
        return PROFILES[profile].disk_bytes, f"the default of profile {profile}"
    return 0, "no disk tier: offload.maxDisk is 0 or not set"


def _disk_reason(disk_bytes: int, why: str, block_bytes: int) -> str:
    count = disk_blocks(disk_bytes, block_bytes)
    reason = f"disk tier {format_bytes(disk_bytes)}: {why}; {count:,} blocks"
    if count == MAX_DISK_BLOCKS:
        reason += (
            f", the most that its index holds: {format_bytes(count * block_bytes)} of it; larger "
            "blocks (offload.kvBlockTokens) use more"
        )
    return reason


def _prefetch(offload: Offload, host_bytes: int) -> tuple[int, str]:
    written = _written(offload.prefetch_window)
    if written is not None:
        return written, "offload.prefetchWindow"
    why = f"a quarter of the host tier, at most {format_bytes(MAX_PREFETCH_BYTES)}"
    return min(MAX_PREFETCH_BYTES, host_bytes // 4), why


def _profile_reason(offload: Offload, profile: Profile, *, has_device: bool) -> str:
    whose = "offload.profile" if offload.profile else "the default"
    return f"profile {profile}: {whose}{_ON_DEVICES[profile] if has_device else ''}"


def _host_reason(host_bytes: int, why: str) -> str:
    return f"host tier {format_bytes(host_bytes)}: {why}" if host_bytes else f"no host tier: {why}"


def _or(written: int | None, default: int) -> int:
    return default if written is None else written


def _written(quantity: str | None) -> int | None:
    return None if quantity is None else parse_bytes(quantity)
