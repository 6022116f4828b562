"""What spec.offload means: profiles, defaults, what the user wrote, what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from support.model_shapes import facts as facts_of
from support.planning import GIB, MIB, demo_facts, llama_8b_facts, model, node, place, pool
from terrace.api.conditions import Reason
from terrace.planner.footprint import footprint
from terrace.planner.geometry import Shape
from terrace.planner.placement import Placement
from terrace.planner.plan import KvVolume, OffloadPlan
from terrace.planner.rooms import NoPlacement
from terrace.planner.sticky import inputs_digest
from terrace.planner.tiers import MAX_DISK_BLOCKS, Tiers
from terrace_runtime.kv.disk.budget import MAX_BLOCKS


def plan_of(offload: dict[str, Any], memory: int = 64 * GIB, **pool_offload: Any) -> OffloadPlan:
    """The plan of Llama 8B; the pool's settings by keyword."""
    answer = place(
        llama_8b_facts(),
        model(offload=offload),
        pool(offload=pool_offload),
        [node(memory_bytes=memory)],
        {},
    )
    assert isinstance(answer, Placement), answer
    return answer.plan


def refusal_of(offload: dict[str, Any], **pool_offload: Any) -> NoPlacement:
    spec = model(offload=offload)
    answer = place(llama_8b_facts(), spec, pool(offload=pool_offload), [node()], {})
    assert isinstance(answer, NoPlacement)
    return answer


@pytest.mark.parametrize(
    ("profile", "weights", "host", "disk"),
    [
        (None, "mapped", GIB, 0),
        ("Auto", "mapped", GIB, 0),
        ("Balanced", "mapped", 4 * GIB, 0),
        ("HostHeavy", "loaded", 16 * GIB // MIB * MIB, 0),
        ("DiskHeavy", "paged", GIB, 16 * GIB),
    ],
)
def test_a_profile_has_its_own_weights_and_tiers(
    profile: str | None, weights: str, host: int, disk: int
) -> None:
    plan = plan_of({"profile": profile})
    assert (plan.weights, plan.host_bytes, plan.disk_bytes) == (weights, host, disk)
    assert any(reason.startswith(f"profile {profile or 'Auto'}: ") for reason in plan.reasons)


@pytest.mark.parametrize(
    ("offload", "layout"),
    [
        ({}, (False, True)),
        ({"kvLayout": "Auto"}, (False, True)),
        ({"kvLayout": "Split"}, (False, False)),
        ({"kvLayout": "Unified"}, (True, False)),
        # Cells move through the host tier.
        ({"spillThreshold": "0"}, (False, False)),
    ],
)
def test_the_layout_follows_what_requests_share_unless_somebody_chose(
    offload: dict[str, Any], layout: tuple[bool, bool]
) -> None:
    plan = plan_of(offload)
    assert (plan.kv_unified, plan.kv_auto) == layout


def test_a_pools_layout_holds_until_a_model_says_auto() -> None:
    assert not plan_of({}, kvLayout="Split").kv_auto
    assert plan_of({"kvLayout": "Auto"}, kvLayout="Split").kv_auto


def test_where_the_wider_mask_does_not_fit_cells_stay_split() -> None:
    # Of many sequences each token's mask is wider than all that a step has otherwise.
    wide = {"context": {"length": 8192, "parallel": 16}}
    sized = {
        layout: place(
            llama_8b_facts(),
            model(offload={"kvLayout": layout, "spillThreshold": "64Mi"}, **wide),
            pool(),
            [node(memory_bytes=64 * GIB)],
            {},
        )
        for layout in ("Auto", "Split")
    }
    auto, split = (found.plan for found in sized.values() if isinstance(found, Placement))
    assert auto.kv_auto
    assert auto.memory_limit_bytes > split.memory_limit_bytes
    least = split.memory_limit_bytes
    answers = [
        place(
            llama_8b_facts(),
            model(offload={"spillThreshold": "64Mi"}, **wide),
            pool(),
            [node(memory_bytes=memory)],
            {},
        )
        for memory in range(least - GIB, least + 3 * GIB, 4 * MIB)
    ]
    plans = [found.plan for found in answers if isinstance(found, Placement)]
    whole = [plan for plan in plans if (plan.context_tokens, plan.parallel) == (8192, 16)]
    assert [plan.kv_auto for plan in whole] == sorted(plan.kv_auto for plan in whole)
    assert {plan.kv_auto for plan in whole} == {False, True}


def test_what_the_user_wrote_stands_in_the_plan_with_its_reason() -> None:
    plan = plan_of(
        {
            "spillThreshold": "512Mi",
            "maxDisk": "64Gi",
            "prefetchWindow": "128Mi",
            "kvBlockTokens": 64,
            "kvLayout": "Unified",
            "disk": {"storageClassName": "fast"},
        }
    )
    assert (plan.host_bytes, plan.disk_bytes) == (512 * MIB, 64 * GIB)
    assert (plan.prefetch_bytes, plan.block_tokens) == (128 * MIB, 64)
    assert plan.kv_unified
    assert plan.volume == KvVolume(bytes=68 * GIB + 256 * MIB, storage_class="fast")
    told = " | ".join(plan.reasons)
    for words in (
        "host tier 512.0 MiB: offload.spillThreshold; 64 blocks of 64 tokens (8.0 MiB each)",
        "disk tier 64.0 GiB: offload.maxDisk",
        "prefetch window 128.0 MiB: offload.prefetchWindow",
    ):
        assert words in told


def test_a_model_overrides_its_pool_field_by_field() -> None:
    plan = plan_of(
        {"maxDisk": "1Gi", "kvTypes": {"key": "q8_0"}},
        profile="DiskHeavy",
        spillThreshold="256Mi",
        maxDisk="2Gi",
        kvTypes={"value": "q4_0"},
        disk={"ephemeral": True},
    )
    assert (plan.weights, plan.host_bytes, plan.disk_bytes) == ("paged", 256 * MIB, GIB)
    assert (plan.kv_key_type, plan.kv_value_type) == ("q8_0", "f16")
    assert plan.volume is not None
    assert plan.volume.is_ephemeral


def test_a_tier_can_be_switched_off() -> None:
    none = plan_of({"spillThreshold": 0})
    assert (none.host_bytes, none.tiers_bytes) == (0, 0)
    assert "no host tier: offload.spillThreshold" in none.reasons
    host_only = plan_of({"maxDisk": "0"}, profile="DiskHeavy")
    assert (host_only.disk_bytes, host_only.volume) == (0, None)
    assert host_only.host_bytes > 0


def test_a_default_host_tier_shrinks_before_the_context_and_says_so() -> None:
    whole = footprint(llama_8b_facts(), Shape(8192, 4, 512, "f16", "f16"))
    one_sequence = 8192 * (131_072 + 64)
    plan = plan_of({}, memory=whole.limit_bytes + one_sequence + 320 * MIB)
    assert (plan.context_tokens, plan.parallel, plan.host_bytes) == (8192, 4, 256 * MIB)
    assert any("but 512.0 MiB do not fit" in reason for reason in plan.reasons)
    plan = plan_of({}, memory=whole.limit_bytes)
    assert (plan.context_tokens, plan.parallel, plan.host_bytes) == (8192, 4, 0)


@pytest.mark.parametrize(("profile", "most"), [("Auto", 2 * GIB), ("HostHeavy", 16 * GIB)])
def test_whole_states_get_as_much_as_the_cells_that_they_are_copies_of(
    profile: str, most: int
) -> None:
    # A quarter, as blocks get, would hold one of four sequences.
    answer = place(
        facts_of("gemma-3-4b"),
        model(offload={"profile": profile}, context={"length": 8192, "parallel": 4}),
        pool(),
        [node(memory_bytes=64 * GIB)],
        {},
    )
    assert isinstance(answer, Placement)
    plan = answer.plan
    share = plan.kv_bytes if profile == "Auto" else 4 * plan.kv_bytes
    assert plan.host_bytes == pytest.approx(min(share, most), rel=0.01)


def test_a_host_tier_that_the_user_wrote_does_not_shrink() -> None:
    plan = plan_of({"spillThreshold": "1Gi"}, memory=10 * GIB)
    assert (plan.parallel, plan.host_bytes) == (2, GIB)


@pytest.mark.parametrize(
    ("own", "theirs", "words"),
    [
        ({"spillThreshold": 0}, {"maxDisk": "1Gi"}, "reach the disk through the host tier"),
        ({"spillThreshold": "16Mi"}, {"kvBlockTokens": 128}, "must hold two KV blocks of 16.0 MiB"),
        (
            {"spillThreshold": "64Mi", "maxDisk": "1Gi"},
            {"prefetchWindow": "128Mi"},
            "offload.prefetchWindow 128Mi must not be above offload.spillThreshold 64Mi",
        ),
        ({"disk": {"claimName": "a"}}, {}, "set offload.maxDisk"),
        ({"profile": "DeviceOnly"}, {"maxDisk": "1Gi"}, "drop offload.maxDisk"),
    ],
)
def test_what_model_and_pool_say_together_may_contradict_itself(
    own: dict[str, Any], theirs: dict[str, Any], words: str
) -> None:
    answer = refusal_of(own, **theirs)
    assert answer.reason is Reason.INVALID_OFFLOAD
    assert words in answer.message


def test_a_device_is_missed_by_name() -> None:
    answer = refusal_of({"profile": "DeviceOnly"})
    assert answer.reason is Reason.NO_DEVICE
    assert "flavor cpu has accelerator cpu" in answer.message


def test_a_model_larger_than_host_memory_is_placed_by_paging_its_weights() -> None:
    flavor = {"name": "cpu", "host": {"memory": "2Gi"}}
    size = {"length": 2048, "parallel": 1}
    spec = model(context=size, offload={"maxDisk": 0, "spillThreshold": 0})
    small = place(llama_8b_facts(), spec, pool(flavor), [node()], {})
    assert isinstance(small, NoPlacement)
    assert "or offload.profile DiskHeavy" in small.message
    heavy = pool(flavor, offload={"profile": "DiskHeavy"})
    answer = place(llama_8b_facts(), spec, heavy, [node()], {})
    assert isinstance(answer, Placement)
    plan = answer.plan
    assert plan.weights_bytes > 2 * GIB
    assert plan.memory_request_bytes <= plan.memory_limit_bytes == 2 * GIB
    assert any("each step reads the rest from disk" in reason for reason in plan.reasons)


def test_paged_weights_may_fill_what_is_free_and_no_more_than_they_are() -> None:
    plan = plan_of({"profile": "DiskHeavy"}, memory=64 * GIB)
    mapped = footprint(
        llama_8b_facts(),
        Shape(8192, 4, 512, "f16", "f16", tiers=Tiers("paged", host_bytes=GIB)),
    ).mapped_bytes
    spare = plan.memory_limit_bytes - plan.memory_request_bytes
    assert spare >= plan.weights_bytes - mapped
    assert plan.memory_limit_bytes < 64 * GIB


def test_loaded_weights_need_no_page_cache_of_their_own() -> None:
    mapped, loaded = (
        footprint(llama_8b_facts(), Shape(8192, 4, 512, "f16", "f16", tiers=Tiers(weights)))
        for weights in ("mapped", "loaded")
    )
    assert loaded.anonymous_bytes - mapped.anonymous_bytes == mapped.mapped_bytes
    assert loaded.request_bytes == mapped.request_bytes


def test_loading_counts_a_tied_head_twice_and_the_buffer_that_tensors_pass() -> None:
    def anonymous(**changes: Any) -> int:
        shape = Shape(64, 1, 32, "q4_0", "q4_0", tiers=Tiers("loaded"))
        size = footprint(llama_8b_facts(**changes), shape)
        return size.repacked_bytes + size.loading_bytes

    weights = 32 * 131_000_000 + 295_501_824
    assert anonymous(repacked_bytes=0, output_bytes=0) == weights
    assert anonymous(output_bytes=0) >= weights + 295_501_824
    assert anonymous(output_bytes=10**9) > weights + 10**9


def test_a_guessed_token_has_logits_of_its_own() -> None:
    plain = place(llama_8b_facts(), model(), pool(), [node()], {})
    guessing = model(speculation={"mode": "NGram", "maxTokens": 3})
    more = place(llama_8b_facts(), guessing, pool(), [node()], {})
    assert isinstance(plain, Placement)
    assert isinstance(more, Placement)
    logits = 4 * 4 * 128_256
    assert more.plan.compute_bytes >= plain.plan.compute_bytes + 3 * logits


def test_a_disk_tier_of_tiny_blocks_says_how_much_of_it_can_be_used() -> None:
    offload = {"maxDisk": "64Gi", "kvTypes": {"key": "q8_0", "value": "q4_0"}}
    answer = place(demo_facts(), model(offload=offload), pool(), [node()], {})
    assert isinstance(answer, Placement)
    assert any("1,000,000 blocks, the most that its index holds" in r for r in answer.plan.reasons)
    assert MAX_DISK_BLOCKS == MAX_BLOCKS


def test_a_model_that_cannot_drop_tokens_says_why_it_does_not_guess() -> None:
    guessing = model(speculation={"mode": "NGram"})
    for facts, is_told in ((demo_facts(), False), (demo_facts(recurrent_bytes=4096), True)):
        answer = place(facts, guessing, pool(), [node()], {})
        assert isinstance(answer, Placement)
        assert any("no speculation" in reason for reason in answer.plan.reasons) == is_told


def test_settings_that_say_the_same_restart_nothing() -> None:
    def digest(own: dict[str, Any], theirs: dict[str, Any]) -> str:
        specs = model(offload=own), pool(offload=theirs)
        return inputs_digest(demo_facts(), *specs, "cpu")

    assert digest({}, {}) == digest({"profile": "Auto", "kvBlockTokens": 32, "disk": {}}, {})
    assert digest({}, {}) == digest({"checkpointTokens": 512}, {"checkpointCount": 32})
    assert digest({"maxDisk": "1Gi"}, {}) == digest({"maxDisk": "1024Mi"}, {"maxDisk": "2Gi"})
    assert digest({"profile": "Auto"}, {"profile": "DiskHeavy"}) == digest({}, {})
    assert digest({}, {"profile": "DiskHeavy"}) != digest({}, {})
