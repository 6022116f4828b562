"""What each profile puts on devices, and which size of context it pays for with.

Owns: the meaning of the profiles on devices, the trade between context and layers. Does not own:
what fits (``split.py``), the tiers (``tiers.py``). Pure. Next: ``shapes.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.planner.classes import reuse_of
from terrace.planner.geometry import DeviceSplit
from terrace.planner.split import search
from terrace.planner.tiers import DEFAULT_PROFILE, meaning_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from terrace.api.offload import Profile
    from terrace.planner.devices import DeviceRoom
    from terrace.planner.shapes import Wish
    from terrace.planner.sizing import Size
    from terrace.planner.split import Search
    from terrace_runtime.contract import ModelFacts

GIVEN_UP: dict[Profile, float] = {"Auto": 0.05, "Balanced": 0.5, "DiskHeavy": 0.5}
"""How much of the speed that the smallest default context brings is given up for a larger one; all
of it with other profiles."""

LEAST_GAIN = 0.5
"""How much faster tokens must become for cells to leave the layers that are on devices: attention
is then computed on the host, which makes long prompts slower, and more so with more of them."""
MAY_MOVE_CELLS: frozenset[Profile] = frozenset({"Auto", "Balanced", "DiskHeavy"})


@dataclass(frozen=True, slots=True)
class Sized:
    """A size of context with what then goes to the devices."""

    size: Size
    split: DeviceSplit | None
    speed: float
    """Expected tokens/s of one conversation; 0: not estimated."""

    def is_whole(self, wish: Wish) -> bool:
        """Whether all weights and cells are on devices."""
        return self.split is not None and is_whole(self.split, wish.facts.layer_count)


def preferred(wish: Wish, room: DeviceRoom, sizes: Sequence[Size]) -> Iterator[Sized]:
    """The sizes that fit ``room``, the best first: as many layers as fit for each.

    A default context that keeps layers off the device shrinks as long as that makes tokens faster
    by more than the profile gives up; what the user wrote does not.
    """
    found: list[Sized] = []
    profile = wish.offload.profile or DEFAULT_PROFILE
    default = next(size for size in sizes if not size.is_extra)
    for size in sizes:
        sized = chosen(wish, room, size, read_tokens=default.context_tokens // 2)
        if sized is None or (size.is_extra and not sized.is_whole(wish)):
            continue
        if not found and (profile not in GIVEN_UP or sized.is_whole(wish)):
            yield sized  # Nothing is faster.
        else:
            found.append(sized)
    least = max((each.speed for each in found), default=0.0) * (1 - GIVEN_UP.get(profile, 1))
    for good in (True, False):
        for each in found:
            if (each.speed >= least) is good:
                yield each if each is found[0] else _traded(each, found[0])


def chosen(wish: Wish, room: DeviceRoom, size: Size, *, read_tokens: int = 0) -> Sized | None:
    """What the profile puts on devices with ``size``; None where not one layer fits."""
    profile = wish.offload.profile or DEFAULT_PROFILE
    one = searched(wish, room, size, read_tokens=read_tokens)
    split = pick(one, profile)
    least = one.speed(split) * (1 + LEAST_GAIN) if split else 0.0
    may_move = profile in MAY_MOVE_CELLS and _has_only_cells(wish.facts)
    # A default context shrinks instead.
    may_move &= wish.spec.context.length is not None or wish.spec.context.parallel is not None
    if may_move and one.speed(DeviceSplit(one.layer_count + 1, kv_on_device=False)) > least:
        other = searched(wish, room, size, read_tokens=read_tokens, kv_on_device=False)
        moved = pick(other, profile)
        if moved and other.speed(moved) > least:
            split = moved
    return Sized(size, split, one.speed(split)) if split else None


def fuller(wish: Wish, room: DeviceRoom, sized: Sized, missing_bytes: int) -> Sized | None:
    """The fastest split that leaves a host, too small by so many bytes, so much less."""
    one = searched(wish, room, sized.size)
    if sized.split is None or not sized.split.kv_on_device or not _may_fill(wish, one):
        return None
    split = one.fuller(sized.split, missing_bytes)
    return Sized(sized.size, split, one.speed(split)) if split else None


def fullest(wish: Wish, room: DeviceRoom, size: Size) -> DeviceSplit | None:
    """The split that leaves the host least; None where not one layer fits."""
    one = searched(wish, room, size)
    found = one.fullest() if _may_fill(wish, one) else None
    usual = chosen(wish, room, size)
    return found or (usual.split if usual else None)


def _may_fill(wish: Wish, one: Search) -> bool:
    """Whether there are other ways to fill a device than the fastest."""
    return one.has_experts and (wish.offload.profile or DEFAULT_PROFILE) in MAY_MOVE_CELLS


def _has_only_cells(facts: ModelFacts) -> bool:
    """Whether what the model keeps is KV cells: recurrent states are computed where they lie."""
    has_cells = any(run.kv_heads for run in facts.layers)
    return has_cells and not facts.recurrent_bytes and reuse_of(facts) != "none"


def searched(
    wish: Wish,
    room: DeviceRoom,
    size: Size,
    *,
    read_tokens: int = 0,
    kv_on_device: bool = True,
) -> Search:
    """The search for one size."""
    share = meaning_of(wish.offload, has_device=True).device_share
    # Only HostHeavy takes the feed-forward weights of dense layers away from their attention.
    is_dense = wish.offload.profile == "HostHeavy" and not any(
        run.expert_bytes for run in wish.facts.layers
    )
    return search(
        wish.facts,
        wish.bare(size),
        room,
        wish.extras_of(size),
        share=share,
        read_tokens=read_tokens,
        is_dense=is_dense,
        kv_on_device=kv_on_device,
    )


def pick(one: Search, profile: Profile) -> DeviceSplit | None:
    """What ``profile`` puts on the devices; None where not one layer fits."""
    if profile == "HostHeavy":
        return _host_heavy(one)
    whole = one.whole()
    if whole is not None or profile == "DeviceOnly":
        return whole
    # A token goes through few of the experts: they are what costs least on the host.
    choices = [one.most_layers(0)]
    if one.has_experts:
        choices += [one.fewest_experts(), one.most_layers(one.layer_count), one.fastest_between()]
    fitting = [choice for choice in choices if choice is not None]
    return max(fitting, key=one.speed, default=None)


def is_whole(split: DeviceSplit, layer_count: int) -> bool:
    """Whether all weights and cells are on devices."""
    all_weights = split.device_layers > layer_count and not split.expert_layers_on_host
    return all_weights and split.kv_on_device


def _host_heavy(one: Search) -> DeviceSplit | None:
    """Attention and cells on devices, what can be without them on the host."""
    if one.has_experts:
        return one.most_layers(one.layer_count)
    half, weights = one.sums.weights[-1] // 2, one.sums.weights
    layers = sum(weights[-1] - each <= half for each in weights[:-1])
    most = max(2, layers + 1)
    return one.whole() if most > one.layer_count else one.most_layers(0, most)


def _traded(chosen: Sized, first: Sized) -> Sized:
    """``chosen`` with the reason why it is not the larger ``first``."""
    size, large = chosen.size, first.size
    what = []
    if size.parallel != large.parallel:
        what.append(f"parallel {size.parallel} instead of {large.parallel}")
    if size.context_tokens != large.context_tokens:
        what.append(f"context {size.context_tokens:,} instead of {large.context_tokens:,} tokens")
    why = (
        f"{' and '.join(what)}: fewer cells leave room for {_more(chosen.split, first.split)} on "
        f"the device, which makes tokens about {chosen.speed / first.speed:.1f} x as fast; set "
        "spec.context to decide yourself"
    )
    return replace(chosen, size=replace(size, reasons=(*large.reasons, why)))


def _more(chosen: DeviceSplit | None, first: DeviceSplit | None) -> str:
    if chosen is None or first is None:
        return "more layers"
    layers = chosen.device_layers - first.device_layers
    if layers:
        return f"{layers} more layers" if layers > 1 else "1 more layer"
    return (
        f"the experts of {first.expert_layers_on_host - chosen.expert_layers_on_host} more layers"
    )
