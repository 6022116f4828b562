"""Plans of known models, number by number: a change here is a change for every user."""

from __future__ import annotations

import pytest

from support.planning import GIB, MIB, demo_facts, llama_8b_facts, model, node, place, pool
from terrace.planner.compute_buffer import compute_bytes
from terrace.planner.geometry import Shape, kv_bytes_per_cell
from terrace.planner.placement import Placement
from terrace.planner.plan import KvVolume
from terrace_runtime.contract import LayerRun, ModelFacts


def shape(context: int = 8192, parallel: int = 4) -> Shape:
    return Shape(context, parallel, 512, "f16", "f16")


def other_facts(
    width: int, wide: int, vocabulary: int, *, experts: bool = False, window: int = 0
) -> ModelFacts:
    run = LayerRun(
        count=2,
        weight_bytes=2,
        expert_bytes=1 if experts else 0,
        kv_heads=4,
        key_length=128,
        value_length=128,
        window=window,
    )
    return demo_facts(
        embedding_length=width, feed_forward_length=wide, vocabulary=vocabulary, layers=(run,)
    )


@pytest.mark.parametrize(
    ("keys", "bytes_per_token"), [("f16", 131_072), ("q8_0", 69_632), ("q4_0", 36_864)]
)
def test_llama_8b_keeps_the_published_bytes_per_token(keys: str, bytes_per_token: int) -> None:
    spec = model(offload={"kvTypes": {"key": keys, "value": keys}}, context={"length": 2048})
    placement = place(llama_8b_facts(), spec, pool(), [node()], {})
    assert isinstance(placement, Placement)
    plan = placement.plan
    assert any(f"x {bytes_per_token:,} B" in reason for reason in plan.reasons)
    assert plan.kv_bytes == 4 * 2048 * (bytes_per_token + 160)


def test_a_cell_of_the_demo_model_is_1280_bytes() -> None:
    assert kv_bytes_per_cell(demo_facts(), shape()) == 1280


@pytest.mark.parametrize(
    ("facts", "context", "reported_mib"),
    [
        # "compute buffer size" that llama.cpp itself reports for these shapes (no_alloc).
        (other_facts(4096, 14336, 128_256), 8192, 124.01),
        (other_facts(4096, 14336, 128_256), 131_072, 244.01),
        (other_facts(2048, 8192, 128_256), 8192, 72.01),
        (other_facts(4096, 12288, 151_936), 8192, 112.01),
        (other_facts(1024, 3072, 151_936), 8192, 30.01),
        (other_facts(2048, 6144, 151_936, experts=True), 8192, 96.01),
        (other_facts(2560, 10240, 262_144, window=1024), 8192, 87.01),
        (other_facts(192, 512, 2048), 2048, 6.51),
    ],
)
def test_the_compute_buffer_is_covered_and_not_by_half_too_much(
    facts: ModelFacts, context: int, reported_mib: float
) -> None:
    parallel = 1 if context > 100_000 else 4
    estimate = compute_bytes(facts, shape(context, parallel))
    assert reported_mib * MIB <= estimate <= reported_mib * MIB * 1.4


def test_logits_of_many_sequences_and_a_large_vocabulary_are_counted() -> None:
    # 200 sequences x 128,256 values: llama.cpp reports 97.85 MiB of output, 100.98 of compute.
    facts = other_facts(1024, 4096, 128_256)
    assert compute_bytes(facts, shape(4096, 200)) >= (97.85 + 100.98) * MIB


def test_llama_8b_on_a_node_of_32_gib() -> None:
    placement = place(llama_8b_facts(), model(), pool(), [node(memory_bytes=32 * GIB)], {})
    assert isinstance(placement, Placement)
    plan = placement.plan
    of_others = {"device", "draft_bytes", "adapter_bytes", "attempt", "host_weights_bytes"}
    of_others |= {"projector_bytes"}
    notes = {"anonymous_bytes", "corrected_host_bytes", "corrected_device_bytes"}
    told = {"reasons", "preferred_nodes", "inputs", *notes}
    assert plan.model_dump(exclude=of_others | told) == {
        "version": "v1",
        "flavor": "cpu",
        "context_tokens": 8192,
        "parallel": 4,
        "batch_tokens": 512,
        "ubatch_tokens": 512,
        "prefill_tokens": 256,
        "threads": 7,
        "kv_key_type": "f16",
        "kv_value_type": "f16",
        "kv_unified": False,
        "kv_auto": True,
        "weights": "mapped",
        "block_tokens": 32,
        # Auto: a quarter of the KV cells, in whole MiB, at most 1 GiB.
        "host_bytes": GIB,
        "disk_bytes": 0,
        "prefetch_bytes": 0,
        "checkpoint_tokens": 512,
        "checkpoint_count": 32,
        "volume": None,
        "weights_bytes": 4_918_462_464,
        "repacked_bytes": 2_600_000_000,
        "kv_bytes": 4_300_210_176,
        # Unified cells for a moment: 131 rows of 32,768 cells are more than 515 of 8,192.
        "compute_bytes": 142_213_632,
        "base_bytes": 230_440_960,
        # The arena and two spare blocks of 4 MiB in huge pages, a sequence of 8,192 x
        # (131,072 + 64) B on its way, 256 blocks in the index.
        "tiers_bytes": GIB + 10 * MIB + 8192 * 131_136 + 256 * 512,
        "memory_request_bytes": 11_800_283_648,
        "memory_limit_bytes": 11_893_447_296,
        "cpu_millis": 1750,
    }


def test_the_demo_model_on_two_cores() -> None:
    spec = model(context={"length": 2048, "parallel": 4})
    placement = place(demo_facts(), spec, pool(), [node(cpu_millis=2000)], {})
    assert isinstance(placement, Placement)
    plan = placement.plan
    assert (plan.kv_bytes, plan.threads) == (8192 * 1440, 1)
    assert plan.host_bytes == 64 * MIB
    assert 230 * MIB < plan.memory_request_bytes < 280 * MIB


def test_the_demo_model_of_the_disk_heavy_example() -> None:
    settings = {
        "profile": "DiskHeavy",
        "spillThreshold": "512Mi",
        "maxDisk": "64Gi",
        "prefetchWindow": "128Mi",
        "kvBlockTokens": 32,
        "kvTypes": {"key": "q8_0", "value": "q4_0"},
    }
    spec = model(context={"length": 2048, "parallel": 4})
    placement = place(demo_facts(), spec, pool(offload=settings), [node()], {})
    assert isinstance(placement, Placement)
    plan = placement.plan
    assert (plan.host_bytes, plan.disk_bytes) == (512 * MIB, 64 * GIB)
    assert (plan.prefetch_bytes, plan.block_tokens) == (128 * MIB, 32)
    assert (plan.kv_key_type, plan.kv_value_type) == ("q8_0", "q4_0")
    assert (plan.weights, plan.repacked_bytes) == ("paged", 0)
    assert plan.volume == KvVolume(bytes=68 * GIB + 256 * MIB)
