"""A projector in a plan: counted in host memory with a reason, refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.controller_objects import projector_facts
from support.devices import H100, plan_in, room
from support.planning import GIB, MIB, demo_facts, llama_8b_facts, model, node, pool
from terrace.api.conditions import Reason
from terrace.planner.inputs import Cluster, ModelInputs
from terrace.planner.placement import Placement, place
from terrace.planner.plan import OffloadPlan
from terrace.planner.planned import DEVICE_THREADS
from terrace.planner.projector import projector_bytes
from terrace.planner.rooms import NoPlacement
from terrace.planner.sticky import inputs_digest
from terrace_runtime.contract import HELD_PIXEL_BYTES, IMAGE_ROWS_BYTES

if TYPE_CHECKING:
    from terrace_runtime.contract import ModelFacts, ProjectorFacts

SPEC = model(projector={"uri": "https://host/mmproj.gguf"})
SIGLIP_400M = projector_facts(
    projector_type="gemma3",
    image_size=896,
    patch_size=14,
    max_patches=4097,
    embedding_length=1152,
    feed_forward_length=4304,
    heads=16,
    layers=27,
    weight_bytes=850 * MIB,
    file_bytes=850 * MIB,
    output_length=4096,
    max_rows=256,
    rows_at_once=256,
)


def planned(
    facts: ModelFacts, projector: ProjectorFacts | None, memory_bytes: int = 32 * GIB
) -> Placement | NoPlacement:
    nodes = (node(memory_bytes=memory_bytes),)
    return place(ModelInputs(facts, SPEC, projector=projector), pool(), Cluster(nodes))


def plan_of(facts: ModelFacts, projector: ProjectorFacts | None, **more: Any) -> OffloadPlan:
    found = planned(facts, projector, **more)
    assert isinstance(found, Placement), found
    return found.plan


def test_a_plan_counts_the_projector_and_says_what_for() -> None:
    plain, seeing = plan_of(llama_8b_facts(), None), plan_of(llama_8b_facts(), SIGLIP_400M)
    counted = projector_bytes(SIGLIP_400M)
    assert plain.projector_bytes == 0
    assert seeing.projector_bytes == counted.total
    # Without one the layout of cells may change, which takes a little for the wider mask.
    wider = plain.compute_bytes - seeing.compute_bytes
    assert (plain.kv_auto, seeing.kv_auto) == (True, False)
    assert seeing.memory_request_bytes - plain.memory_request_bytes == counted.total - wider
    (words,) = [reason for reason in seeing.reasons if reason.startswith("projector: ")]
    assert "850.0 MiB of weights" in words
    assert "to encode an image" in words
    assert plain.digest != seeing.digest


def test_what_images_take_does_not_hang_on_the_projector() -> None:
    small, large = projector_bytes(projector_facts()), projector_bytes(SIGLIP_400M)
    assert small.images == large.images > HELD_PIXEL_BYTES + IMAGE_ROWS_BYTES
    assert small.weights == projector_facts().weight_bytes


@pytest.mark.parametrize(
    "larger",
    [
        {"max_patches": 5000},
        {"max_pieces": 5},
        {"embedding_length": 2048},
        {"feed_forward_length": 9000},
        {"output_length": 30_000},
        {"max_rows": 4096},
    ],
)
def test_a_larger_encoder_never_needs_less(larger: dict[str, int]) -> None:
    before = projector_bytes(SIGLIP_400M)
    after = projector_bytes(SIGLIP_400M.model_copy(update=larger))
    assert after.compute >= before.compute
    assert after.total > before.total


def test_a_node_without_room_for_the_projector_says_what_is_missing() -> None:
    facts = demo_facts(embedding_length=4096)
    with_room = plan_of(facts, None, memory_bytes=GIB)
    found = planned(facts, SIGLIP_400M, GIB)
    assert with_room.memory_limit_bytes < GIB
    assert isinstance(found, NoPlacement)
    assert found.reason == Reason.NO_NODE_FITS
    assert found.missing_bytes > 0


@pytest.mark.parametrize(
    ("facts", "projector", "words"),
    [
        (
            llama_8b_facts(),
            projector_facts(output_length=960),
            "spec.projector makes rows of 960 values, the model takes 4,096",
        ),
        (
            llama_8b_facts(architecture="qwen2vl"),
            SIGLIP_400M,
            "(M-RoPE), which spec.projector of the kind gemma3 was not made for",
        ),
        (
            llama_8b_facts(architecture="qwen3vl"),
            SIGLIP_400M.model_copy(
                update={"projector_type": "qwen3vl_merger", "output_length": 4 * 4096 + 1}
            ),
            "spec.projector makes rows of 16,385 values, the model takes 4,096",
        ),
        (llama_8b_facts(pooling="mean"), SIGLIP_400M, "drop spec.projector"),
        (
            llama_8b_facts(),
            SIGLIP_400M.model_copy(update={"rows_at_once": 1120}),
            "up to 1,120 rows that attend to each other, and a step takes 512",
        ),
    ],
    ids=["width", "m-rope", "stacked width", "embeddings", "rows at once"],
)
def test_a_pair_that_does_not_fit_is_refused_with_both_numbers(
    facts: ModelFacts, projector: ProjectorFacts, words: str
) -> None:
    found = planned(facts, projector)
    assert isinstance(found, NoPlacement)
    assert found.reason == Reason.INVALID_PROJECTOR
    assert words in found.message


def test_rows_for_several_layers_of_a_model_fit_it() -> None:
    stacked = {"projector_type": "qwen3vl_merger", "output_length": 4 * 4096}
    found = planned(llama_8b_facts(architecture="qwen3vl"), SIGLIP_400M.model_copy(update=stacked))
    assert not isinstance(found, NoPlacement)


def test_attention_within_windows_takes_a_mask_of_all_patches() -> None:
    patches = 4 * 46**2
    narrow = SIGLIP_400M.embedding_length
    kind = "qwen2vl_merger"
    shape = {"max_patches": patches, "projector_type": kind, "feed_forward_length": narrow}
    without = SIGLIP_400M.model_copy(update=shape)
    masked = without.model_copy(update={"projector_type": "qwen2.5vl_merger"})
    more = projector_bytes(masked).compute - projector_bytes(without).compute
    assert more == patches**2 * (4 + 2 + 4)


def test_another_projector_of_the_same_shape_is_another_plan() -> None:
    first = ModelInputs(llama_8b_facts(), SPEC, projector=SIGLIP_400M)
    other = replace(first, projector=SIGLIP_400M.model_copy(update={"digest": "c" * 64}))
    digests = {
        inputs_digest(each.facts, SPEC, pool(), "cpu", each.extra_digests)
        for each in (first, other)
    }
    assert len(digests) == 2


def test_images_keep_the_host_s_threads_at_work_where_the_model_is_on_a_device() -> None:
    plain = plan_in(llama_8b_facts(), room(H100))
    seeing = plan_in(llama_8b_facts(), room(H100), {"projector": SIGLIP_400M})
    assert isinstance(plain, OffloadPlan)
    assert isinstance(seeing, OffloadPlan)
    assert plain.threads == DEVICE_THREADS < seeing.threads
