"""What goes to devices, against an exact solver that tries everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from support.devices import L4, plan_in, room, wish
from support.planning import GIB, MIB, demo_facts
from terrace.planner.footprint import Footprint, footprint
from terrace.planner.geometry import DeviceSplit, Shape, places
from terrace.planner.inputs import Correction
from terrace.planner.plan import OffloadPlan
from terrace.planner.split import HOST_BYTES_PER_SECOND
from terrace.planner.tiers import Tiers
from terrace_runtime.contract import LayerRun, ModelFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.planner.devices import DeviceRoom
    from terrace.planner.shapes import Wish
    from terrace.planner.sizing import Size
    from terrace.planner.tiers import Weights

MAX_LOSS = 0.1


def layer_run(count: int, dense: int, experts: int, kv_heads: int, window: int) -> LayerRun:
    return LayerRun(
        count=count,
        weight_bytes=dense + experts,
        expert_bytes=experts,
        kv_heads=kv_heads,
        key_length=128 if kv_heads else 0,
        value_length=128 if kv_heads else 0,
        window=window if kv_heads else 0,
        state_bytes=0 if kv_heads else 4 * MIB,
    )


runs = st.builds(
    layer_run,
    count=st.integers(1, 3),
    dense=st.integers(10 * MIB, 2 * GIB),
    experts=st.sampled_from([0, 0, 512 * MIB, 4 * GIB]),
    kv_heads=st.sampled_from([0, 1, 8]),
    window=st.sampled_from([0, 0, 1024]),
)
models = st.builds(
    lambda layers, head, is_tied, used: demo_facts(
        layers=tuple(layers),
        embedding_length=4096,
        feed_forward_length=14336,
        heads=32,
        vocabulary=32000,
        context_length=8192,
        token_embedding_bytes=head,
        output_bytes=4096 if is_tied else head,
        recurrent_bytes=sum(run.count * run.state_bytes for run in layers),
        experts=64,
        experts_used=used,
    ),
    st.lists(runs, min_size=1, max_size=3),
    st.integers(MIB, GIB),
    st.booleans(),
    st.sampled_from([2, 8, 64]),
)
device_rooms = st.builds(
    lambda memory, count, speed: replace(
        L4, memory_bytes=memory, count=count, bytes_per_second=speed
    ),
    st.integers(GIB, 24 * GIB),
    st.integers(1, 2),
    st.sampled_from([60e9, 300e9, 3e12]),
)


@dataclass(frozen=True)
class Solution:
    """The best of everything that fits."""

    speed: float = 0.0
    split: DeviceSplit | None = None


def splits(facts: ModelFacts, device: DeviceRoom) -> Iterator[DeviceSplit]:
    """Every split with at least one layer on a device, and cells with their layers."""
    layer_count = facts.layer_count
    for layers, experts in product(range(2, layer_count + 2), range(layer_count + 1)):
        cuts: list[tuple[float, ...]] = [()]
        if device.count > 1:
            cuts = [(float(first), float(layers - first)) for first in range(layers + 1)]
        for cut in cuts:
            yield DeviceSplit(
                layers,
                devices=device.count,
                expert_layers_on_host=experts,
                tensor_split=cut,
                is_pinned=True,
            )


def fits(wanted: Wish, shape: Shape, size: Size, device: DeviceRoom, host_bytes: int) -> bool:
    found = footprint(wanted.facts, shape, wanted.extras_of(size))
    room_bytes = device.memory_bytes - device.margin_bytes
    on_devices = all(each.limit_bytes <= room_bytes for each in found.devices)
    return on_devices and found.limit_bytes <= host_bytes


def speed(facts: ModelFacts, split: DeviceSplit, device: DeviceRoom, tokens: int) -> float:
    """Tokens/s of one conversation, layer by layer."""
    host, there = 0.0, facts.output_bytes * 1.0
    if facts.output_bytes < facts.token_embedding_bytes // 4:
        there += facts.token_embedding_bytes
    first = facts.layer_count + 1 - split.device_layers
    number = 0
    for run in facts.layers:
        for _ in range(run.count):
            used = run.expert_bytes * facts.experts_used / facts.experts
            seen = min(tokens, run.window) if run.window else tokens
            read = run.weight_bytes - run.expert_bytes
            cells = run.kv_heads * (run.key_length + run.value_length) * 2 * seen + run.state_bytes
            on_host = number < first
            host += read if on_host else 0
            there += 0 if on_host else read
            is_with_it = split.kv_on_device and not on_host
            host += 0 if is_with_it else cells
            there += cells if is_with_it else 0
            is_moved = on_host or number < split.expert_layers_on_host
            host += used if is_moved else 0
            there += 0 if is_moved else used
            number += 1
    return 1 / (there / device.bytes_per_second + host / HOST_BYTES_PER_SECOND)


def solve(wanted: Wish, device: DeviceRoom, host_bytes: int) -> Solution:
    """The fastest of all sizes, layers, experts and cuts that fit."""
    best = Solution()
    sizes = list(wanted.sizes(room(device)))
    tokens = sizes[0].context_tokens // 2
    for size in sizes:
        *_, least = wanted.choices(size, DeviceSplit(2))
        for split in splits(wanted.facts, device):
            found = speed(wanted.facts, split, device, tokens)
            if found > best.speed and fits(
                wanted, replace(least, split=split), size, device, host_bytes
            ):
                best = Solution(found, split)
    return best


@settings(max_examples=40, deadline=None)
@given(models, device_rooms, st.sampled_from([4 * GIB, 64 * GIB]))
def test_auto_is_never_much_slower_than_the_best_there_is(
    facts: ModelFacts, device: DeviceRoom, host_bytes: int
) -> None:
    plan = plan_in(facts, room(device, host_bytes=host_bytes))
    best = solve(wish(facts), device, host_bytes)
    if not isinstance(plan, OffloadPlan):
        assert best.split is None, f"{best} fits: {plan}"
        return
    assert plan.device is not None
    split = DeviceSplit(
        plan.device.device_layers,
        devices=device.count,
        expert_layers_on_host=plan.device.expert_layers_on_host,
        kv_on_device=plan.device.kv_on_device,
        tensor_split=plan.device.tensor_split,
    )
    tokens = min(8192, facts.context_length) // 2
    assert speed(facts, split, device, tokens) >= (1 - MAX_LOSS) * best.speed


@given(models, device_rooms, st.sampled_from(["Auto", "Balanced", "HostHeavy", "DiskHeavy"]))
def test_a_plan_fits_its_devices_and_its_host(
    facts: ModelFacts, device: DeviceRoom, profile: str
) -> None:
    plan = plan_in(facts, room(device, host_bytes=64 * GIB), offload={"profile": profile})
    if not isinstance(plan, OffloadPlan):
        assert plan.missing_bytes > 0
        assert plan.message
        return
    assert plan.device is not None
    assert plan.memory_limit_bytes <= 64 * GIB
    there = plan.device.weights_bytes + plan.device.kv_bytes + plan.device.compute_bytes
    room_bytes = plan.device.memory_bytes - plan.device.margin_bytes
    assert there <= plan.device.count * room_bytes
    assert len(plan.device.tensor_split) in {0, device.count}


@given(models, device_rooms)
def test_device_only_leaves_nothing_on_the_host_or_says_what_is_missing(
    facts: ModelFacts, device: DeviceRoom
) -> None:
    plan = plan_in(facts, room(device), offload={"profile": "DeviceOnly"})
    if not isinstance(plan, OffloadPlan):
        assert "missing on the device" in plan.message
        assert plan.missing_bytes > 0
        return
    assert plan.device is not None
    assert plan.device.device_layers == facts.layer_count + 1
    assert plan.device.expert_layers_on_host == 0
    assert plan.host_weights_bytes == facts.token_embedding_bytes
    assert plan.host_bytes == 0


@given(models, device_rooms, st.integers(0, 20), st.integers(0, 20), st.booleans(), st.data())
def test_bytes_of_all_places_are_all_bytes(
    facts: ModelFacts,
    device: DeviceRoom,
    layers: int,
    experts: int,
    kv_on_device: bool,  # noqa: FBT001 - drawn
    data: st.DataObject,
) -> None:
    cut = data.draw(st.tuples(*[st.integers(1, 9).map(float)] * device.count))
    split = DeviceSplit(
        min(layers, facts.layer_count + 1),
        devices=device.count,
        expert_layers_on_host=min(experts, facts.layer_count),
        kv_on_device=kv_on_device,
        tensor_split=cut,
    )
    wanted = wish(facts)
    (size, *_) = wanted.sizes(room(device))
    *_, shape = wanted.choices(size, split)
    here, all_here = (footprint(facts, replace(shape, split=each)) for each in (split, None))
    there = sum(each.weights_bytes for each in here.devices)
    is_tied = facts.output_bytes < facts.token_embedding_bytes // 4
    copied = facts.token_embedding_bytes if is_tied and split.device_layers else 0
    assert here.host_weights_bytes + there == all_here.weights_bytes + copied
    assert here.kv_bytes + sum(each.kv_bytes for each in here.devices) == all_here.kv_bytes
    where = places(facts.layer_count, split)
    covered = [*where.host, *(layer for each in where.devices for layer in each)]
    assert covered == list(range(facts.layer_count + 1))


@given(models, device_rooms)
def test_profiles_are_ordered_as_their_names_say(facts: ModelFacts, device: DeviceRoom) -> None:
    fixed = {"length": 4096, "parallel": 2}
    plans = {
        name: plan_in(
            facts, room(device, host_bytes=1 << 40), context=fixed, offload={"profile": name}
        )
        for name in ("DeviceOnly", "Auto", "Balanced", "HostHeavy")
    }
    found = {name: plan for name, plan in plans.items() if isinstance(plan, OffloadPlan)}
    if "DeviceOnly" in found:
        assert "Auto" in found
    if "Balanced" in found:
        assert "Auto" in found
    tiers = [found[name].host_bytes for name in plans if name in found]
    assert tiers == sorted(tiers)
    weights = [found[name].device.weights_bytes for name in plans if name in found]  # type: ignore[union-attr] # the room has devices
    assert weights == sorted(weights, reverse=True)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=16).filter(lambda cut: sum(cut) > 1))
def test_a_split_given_as_layers_is_cut_exactly_there(cut: list[int]) -> None:
    split = DeviceSplit(sum(cut), devices=len(cut), tensor_split=tuple(map(float, cut)))
    where = places(sum(cut) + 3, split)
    assert [len(each) for each in where.devices] == cut
    assert where.host == range(4)
    assert where.output == max(index for index, count in enumerate(cut) if count)


@given(
    models,
    st.integers(2, 9),
    st.integers(0, 9),
    st.integers(0, 8192),
    st.integers(0, 8),
    st.sampled_from(["mapped", "loaded", "paged"]),
)
def test_no_place_needs_less_for_more_context_or_sequences(
    facts: ModelFacts, layers: int, experts: int, tokens: int, sequences: int, weights: Weights
) -> None:
    split = DeviceSplit(min(layers, facts.layer_count + 1), expert_layers_on_host=experts)
    small = Shape(512, 1, 512, "f16", "f16", tiers=Tiers(weights), split=split)
    large = replace(small, context_tokens=512 + tokens, parallel=1 + sequences)
    before, after = footprint(facts, small), footprint(facts, large)
    assert before.limit_bytes <= after.limit_bytes
    assert before.devices[0].limit_bytes <= after.devices[0].limit_bytes


@given(models, st.integers(2, 9), st.integers(0, 9))
def test_a_layer_more_on_the_device_is_one_less_on_the_host(
    facts: ModelFacts, layers: int, experts: int
) -> None:
    def size(layers: int, experts: int) -> Footprint:
        split = DeviceSplit(min(layers, facts.layer_count), expert_layers_on_host=experts)
        return footprint(facts, Shape(2048, 2, 512, "f16", "f16", split=split))

    fewer, more, apart = size(layers, experts), size(layers + 1, experts), size(layers, experts + 1)
    assert fewer.devices[0].total_bytes <= more.devices[0].total_bytes
    assert fewer.host_weights_bytes >= more.host_weights_bytes
    assert fewer.kv_bytes >= more.kv_bytes
    assert fewer.devices[0].total_bytes >= apart.devices[0].total_bytes
    assert fewer.host_weights_bytes <= apart.host_weights_bytes


@given(models, device_rooms, st.integers(0, GIB), st.integers(0, GIB), st.integers(1, 3))
def test_what_replicas_took_beyond_their_plan_is_added(
    facts: ModelFacts, device: DeviceRoom, host: int, there: int, attempt: int
) -> None:
    fixed = {"length": 2048, "parallel": 1}
    inputs = {"correction": Correction(host, there), "attempt": attempt}
    before = plan_in(facts, room(device), context=fixed)
    after = plan_in(facts, room(device), inputs, context=fixed)
    if not isinstance(after, OffloadPlan):
        return
    assert isinstance(before, OffloadPlan)
    assert before.device is not None
    assert after.device is not None
    assert after.attempt == attempt
    taken = after.device.weights_bytes + after.device.kv_bytes + after.device.compute_bytes
    room_bytes = device.memory_bytes - device.margin_bytes - there
    assert taken <= device.count * room_bytes
    if before.device == after.device:
        assert after.memory_request_bytes == before.memory_request_bytes + host
