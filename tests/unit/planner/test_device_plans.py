"""What goes to devices and what stays, and what is said where nothing fits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from support.devices import H100, L4, MAC_64, MIG_8, TWO_L4, plan_in, room, wish
from support.model_shapes import facts
from support.planning import GIB, MIB, demo_facts, llama_8b_facts, model, node, pool
from terrace.controller.placing import Decision
from terrace.controller.plan_status import difference, plan_status
from terrace.controller.replica_offload import replica_offload
from terrace.planner.footprint import draft_bytes, footprint
from terrace.planner.geometry import DeviceSplit, Shape
from terrace.planner.inputs import Cluster, Correction, ModelInputs
from terrace.planner.placement import Placement, fit_rooms, place
from terrace.planner.plan import DevicePlan, OffloadPlan
from terrace.planner.planned import MAX_REASON, Fit, bounded
from terrace.planner.room import NoPlacement

if TYPE_CHECKING:
    from terrace.planner.devices import DeviceRoom

BIG, MIXTURE = "llama-3.1-70b", "qwen3-30b-a3b"


def planned(shape: str, device: DeviceRoom, **spec: Any) -> tuple[OffloadPlan, DevicePlan]:
    """The plan of a real shape in a room with devices."""
    found = plan_in(facts(shape), room(device), **spec)
    assert isinstance(found, OffloadPlan), found
    assert found.device is not None
    return found, found.device


def refused(shape: str, device: DeviceRoom, *, host_bytes: int = 128 * GIB, **spec: Any) -> str:
    """Why there is no plan."""
    found = plan_in(facts(shape), room(device, host_bytes=host_bytes), **spec)
    assert isinstance(found, NoPlacement)
    assert found.missing_bytes > 0
    return found.message


def test_a_model_that_fits_lies_on_the_device_whole() -> None:
    plan, device = planned("llama-3.1-8b", H100)
    assert (device.device_layers, device.expert_layers_on_host, device.kv_on_device) == (
        33,
        0,
        True,
    )
    assert plan.host_weights_bytes == facts("llama-3.1-8b").token_embedding_bytes
    assert plan.parallel == 16
    assert (plan.threads, plan.cpu_millis) == (4, 1000)


def test_cells_leave_the_device_where_many_sequences_would_push_the_layers_out() -> None:
    plan, device = planned("llama-3.1-8b", L4, context={"length": 8192, "parallel": 48})
    assert (device.device_layers, device.kv_on_device, device.kv_bytes) == (33, False, 0)
    assert plan.kv_bytes >= 48 * 8192 * 131_072
    assert any(reason.startswith("KV cells and attention on the host") for reason in plan.reasons)
    _, states = planned("nemotron-h-8b", MIG_8, context={"length": 8192, "parallel": 48})
    assert states.kv_on_device


def test_what_the_user_wrote_stays() -> None:
    plan, _ = planned("llama-3.1-8b", MIG_8, context={"length": 16384, "parallel": 3})
    assert (plan.context_tokens, plan.parallel) == (16384, 3)


def test_experts_leave_the_device_before_layers_do() -> None:
    plan, device = planned(MIXTURE, MIG_8)
    assert device.device_layers == device.layers + 1
    assert 0 < device.expert_layers_on_host < device.layers
    assert any("a token goes through 8 of 128" in reason for reason in plan.reasons)


def test_host_heavy_keeps_attention_and_cells_of_a_mixture_on_the_device() -> None:
    plan, device = planned(MIXTURE, L4, offload={"profile": "HostHeavy"})
    assert (device.device_layers, device.expert_layers_on_host) == (49, 48)
    assert device.weights_bytes < plan.host_weights_bytes
    assert plan.weights == "loaded"


def test_host_heavy_keeps_attention_and_cells_of_a_dense_model_there_too() -> None:
    plan, device = planned("llama-3.1-8b", L4, offload={"profile": "HostHeavy"})
    assert (device.device_layers, device.feed_forward_on_host) == (33, True)
    assert device.kv_bytes == 4 * 8192 * 131_072
    assert device.weights_bytes < plan.host_weights_bytes
    ((pattern, buffer),) = replica_offload(plan).tensor_overrides
    assert buffer == "CPU"
    for name in ("blk.0.ffn_up.weight", "blk.31.ffn_down.weight", "blk.7.ffn_gate.weight"):
        assert re.search(pattern, name)
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_norm.weight", "blk.32.ffn_up.weight"):
        assert not re.search(pattern, name)


def test_threads_are_many_where_the_host_computes_layers_and_as_written() -> None:
    plan, _ = planned(BIG, L4)
    assert plan.threads == 15
    where = room(H100)
    flavor = pool({"name": "only", "accelerator": "nvidia", "host": {"cpu": "8"}}).flavors[0]
    written = plan_in(facts("llama-3.1-8b"), replace(where, flavor=flavor, threads=8))
    assert isinstance(written, OffloadPlan)
    assert written.threads == 8


def test_layers_are_cut_over_two_devices() -> None:
    plan, device = planned(BIG, TWO_L4)
    assert sum(device.tensor_split) == device.device_layers == 81
    assert abs(device.tensor_split[0] - device.tensor_split[1]) <= 2
    assert any(reason.startswith("tensor split 41 + 40") for reason in plan.reasons)


def test_device_only_says_what_is_missing_and_the_way_out() -> None:
    message = refused(BIG, L4, offload={"profile": "DeviceOnly"})
    assert re.search(r"16\.\d GiB are missing on the device; count 2 in the flavor", message)
    assert "or offload.profile Auto, which keeps in host memory what does not fit" in message


def test_several_devices_are_proposed_where_a_replica_can_have_them_alone() -> None:
    message = refused(BIG, replace(L4, is_alone=True), offload={"profile": "DeviceOnly"})
    assert "missing on the device; it takes a larger device" in message


def test_device_only_proposes_the_context_that_would_fit() -> None:
    message = refused(
        "llama-3.1-8b",
        MIG_8,
        offload={"profile": "DeviceOnly"},
        context={"length": 32768, "parallel": 2},
    )
    assert "context.length 16,384 with context.parallel 1 would fit" in message


def test_device_only_proposes_smaller_cells() -> None:
    spec: dict[str, Any] = {
        "offload": {"profile": "DeviceOnly"},
        "context": {"length": 2048, "parallel": 1},
    }
    _, device = planned("qwen3-8b", MIG_8, **spec)
    taken = device.weights_bytes + device.kv_bytes + device.compute_bytes + device.margin_bytes
    message = refused("qwen3-8b", replace(MIG_8, memory_bytes=taken - 180 * MIB), **spec)
    assert "offload.kvTypes q8_0 for keys and values would fit" in message


def test_graphs_shrink_before_a_device_is_too_small() -> None:
    spec: dict[str, Any] = {
        "offload": {"profile": "DeviceOnly"},
        "context": {"length": 4096, "parallel": 1},
    }
    _, large = planned("gemma-3-4b", L4, **spec)
    taken = large.weights_bytes + large.kv_bytes + large.compute_bytes
    less = replace(L4, memory_bytes=taken + large.margin_bytes)
    plan, device = planned("gemma-3-4b", less, **spec)
    assert plan.ubatch_tokens == 128
    assert device.compute_bytes < large.compute_bytes
    assert any("computed 128 at a time" in reason for reason in plan.reasons)


def test_a_device_too_small_for_one_layer_says_so() -> None:
    message = refused("llama-3.1-405b", replace(MIG_8, memory_bytes=2 * GIB))
    assert "not even one layer and its KV cells fit on 1 x" in message


def test_a_host_too_small_for_the_rest_says_so() -> None:
    message = refused(BIG, MIG_8, host_bytes=16 * GIB)
    assert "in host memory, 16 GiB are free on node-a" in message
    assert "DiskHeavy" in message


def test_paged_weights_need_no_room_on_the_host() -> None:
    where = room(L4, host_bytes=32 * GIB)
    plan = plan_in(facts(MIXTURE), where, offload={"profile": "DiskHeavy"})
    assert isinstance(plan, OffloadPlan)
    assert plan.memory_limit_bytes <= 32 * GIB


def test_a_device_whose_kernels_take_one_sequence_gets_one() -> None:
    device = replace(L4, max_parallel=1)
    plan, _ = planned("llama-3.1-8b", device)
    assert plan.parallel == 1
    two = fit_rooms(wish(facts("llama-3.1-8b"), context={"parallel": 2}), [room(device)])
    assert isinstance(two, NoPlacement)
    assert "spec.context.parallel is 2, its device takes 1 at a time" in two.message


def test_of_two_classes_of_nodes_auto_takes_the_faster_for_this_model() -> None:
    # A fast device that holds a quarter of it, and a slow one that holds all.
    small_and_fast = replace(H100, memory_bytes=12 * GIB)
    large_and_slow = replace(L4, memory_bytes=80 * GIB)
    fit = fit_rooms(wish(facts(BIG)), [room(small_and_fast), room(large_and_slow)])
    assert isinstance(fit, Fit)
    assert fit.room.device == large_and_slow


def test_a_draft_lies_in_host_memory_and_is_counted() -> None:
    draft = facts("llama-3.2-1b")
    spec = {"speculation": {"mode": "Draft"}, "draft": {"uri": "https://host/draft.gguf"}}
    big = facts("llama-3.1-8b")
    fixed = {"context": {"length": 4096, "parallel": 2}}
    plain = plan_in(big, room(L4), **fixed)
    both = plan_in(big, room(L4), {"draft": draft}, **spec, **fixed)
    assert isinstance(plain, OffloadPlan)
    assert isinstance(both, OffloadPlan)
    assert both.draft_bytes == draft_bytes(draft, 4096, 2) > draft.file_bytes * 0.9
    assert both.memory_request_bytes >= plain.memory_request_bytes + both.draft_bytes
    assert any(reason.startswith("draft model: ") for reason in both.reasons)


def test_adapters_lie_where_their_layers_do() -> None:
    shape = Shape(2048, 1, 512, "f16", "f16", split=DeviceSplit(17))
    plain = footprint(llama_8b_facts(), shape)
    wanted = wish(llama_8b_facts(), {"adapter_bytes": 320 * MIB})
    (size, *_) = wanted.sizes(room(L4))
    more = footprint(llama_8b_facts(), shape, wanted.extras_of(size))
    assert more.devices[0].weights_bytes - plain.devices[0].weights_bytes == 160 * MIB
    assert more.extra_bytes == 160 * MIB


def test_a_correction_has_its_reason() -> None:
    inputs = {"correction": Correction(GIB, 2 * GIB), "attempt": 1}
    plan = plan_in(facts("llama-3.1-8b"), room(L4), inputs)
    assert isinstance(plan, OffloadPlan)
    assert plan.attempt == 1
    assert any("1.0 GiB of host memory and 2.0 GiB of a device" in one for one in plan.reasons)


def test_unified_memory_counts_against_the_host() -> None:
    apart, _ = planned("llama-3.1-8b", replace(MAC_64, is_unified=False), context={"parallel": 4})
    shared, device = planned("llama-3.1-8b", MAC_64)
    there = device.weights_bytes + device.kv_bytes + device.compute_bytes
    assert shared.memory_request_bytes >= apart.memory_request_bytes + there


def test_host_layers_are_repacked_only_where_the_backend_has_no_host_buffers() -> None:
    shape = Shape(2048, 1, 512, "f16", "f16", split=DeviceSplit(17))
    pinned = footprint(facts("llama-3.1-8b"), shape)
    plain = replace(shape, split=DeviceSplit(17, is_pinned=False))
    repacked = footprint(facts("llama-3.1-8b"), plain)
    assert pinned.repacked_bytes == 0
    assert 0 < repacked.repacked_bytes < repacked.host_weights_bytes


def test_a_tied_head_is_copied_to_the_device_and_an_encoder_has_none() -> None:
    tied, encoder = facts("llama-3.2-1b"), facts("bge-base")
    for one, copies in ((tied, 1), (encoder, 0)):
        shape = Shape(512, 1, 512, "f16", "f16", split=DeviceSplit(one.layer_count + 1))
        size = footprint(one, shape)
        layers = sum(run.count * run.weight_bytes for run in one.layers)
        head = one.output_bytes + copies * one.token_embedding_bytes
        assert size.devices[0].weights_bytes == layers + head
        assert size.host_weights_bytes >= one.token_embedding_bytes


def test_the_next_flavor_is_taken_where_the_first_has_no_room() -> None:
    flavors = (
        {"name": "gpu", "accelerator": "nvidia", "nodeSelector": {"gpu": "yes"}},
        {"name": "cpu"},
    )
    labels = {"gpu": "yes", "nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "1024"}
    nodes = (
        node("gpu-a", labels=labels, resources={"nvidia.com/gpu": 1}, memory_bytes=64 * GIB),
        node("cpu-a", memory_bytes=64 * GIB),
    )
    found = place(ModelInputs(facts(MIXTURE), model()), pool(*flavors), Cluster(nodes))
    assert isinstance(found, Placement)
    assert found.flavor.name == "cpu"
    assert found.plan.reasons[0].startswith("flavor gpu: ")
    assert "1 x NVIDIA-L4 of gpu-a with 1.0 GiB" in found.plan.reasons[0]


def test_status_plan_shows_the_device_part() -> None:
    plan, device = planned(MIXTURE, MIG_8)
    status = plan_status(Decision(room(MIG_8).flavor, plan))
    assert status.device is not None
    assert (status.device.layers, status.device.layers_on_host) == (48, 0)
    assert status.device.expert_layers_on_host == device.expert_layers_on_host
    assert status.device.bytes.weights == device.weights_bytes
    assert status.device.product == MIG_8.product
    assert plan_status(Decision(room(None).flavor, cpu_plan())).device is None


def cpu_plan() -> OffloadPlan:
    plan = plan_in(demo_facts(), room(None))
    assert isinstance(plan, OffloadPlan)
    return plan


def test_a_pending_plan_says_what_moves() -> None:
    plan, _ = planned("llama-3.1-8b", L4)
    other, _ = planned("llama-3.1-8b", H100)
    assert "device product NVIDIA-L4 -> NVIDIA-H100-80GB-HBM3" in difference(plan, other)
    assert "device device_layers none -> 33" in difference(cpu_plan(), plan)


def test_reasons_are_bounded() -> None:
    many = bounded(tuple("long " * 1000 for _ in range(100)))
    assert len(many) < 50
    assert all(len(one) <= MAX_REASON for one in many)
