"""The plan of every model class against what the real llama.cpp takes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.engine_builders import runtime_config
from support.planning import model, node, place, pool
from support.tiny_models import MODELS
from terrace.planner.classes import reuse_of
from terrace.planner.compute_buffer import compute_bytes
from terrace.planner.footprint import footprint, kv_bytes
from terrace.planner.geometry import Shape
from terrace.planner.placement import Placement
from terrace.planner.reasons import byte_reasons
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import ModelFacts

ROUNDING = 0.02 * 2**20
"""llama.cpp logs sizes in MiB of two digits; two caches are two lines."""


def facts_of(folder: Path, name: str) -> tuple[ModelFacts, Path]:
    file = folder / f"{name}.gguf"
    MODELS[name](file)
    with file.open("rb") as opened:
        return model_facts(read_header(opened, file.stat().st_size), "0" * 64), file


def shape_of(context: int, parallel: int, *, kv_unified: bool) -> Shape:
    shape = Shape(context, parallel, 128, "f16", "f16")
    return replace(shape, tiers=replace(shape.tiers, is_unified=kv_unified))


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize(("context", "parallel"), [(1024, 4), (512, 1)])
@pytest.mark.parametrize("name", list(MODELS))
def test_no_class_takes_more_than_its_plan(
    tmp_path: Path, name: str, context: int, parallel: int, *, kv_unified: bool
) -> None:
    facts, file = facts_of(tmp_path, name)
    config = runtime_config(
        model_path=str(file),
        threads=1,
        context_tokens=context,
        parallel=parallel,
        batch_tokens=128,
        ubatch_tokens=128,
        kv_unified=kv_unified,
    )
    with closing(LlamaBackend()) as backend:
        backend.load(config)
        real = backend.info
    shape = shape_of(context, parallel, kv_unified=kv_unified)
    assert (real.kv_bytes or 0) <= kv_bytes(facts, shape) + ROUNDING
    assert real.compute_bytes is not None
    assert real.compute_bytes <= compute_bytes(facts, shape) + ROUNDING


def test_a_window_and_a_recurrent_state_save_what_llama_cpp_saves(tmp_path: Path) -> None:
    shape = shape_of(8192, 4, kv_unified=False)
    full, _ = facts_of(tmp_path, "llama")
    windowed, _ = facts_of(tmp_path, "gemma3")
    recurrent, _ = facts_of(tmp_path, "mamba")
    # Half of the layers keep 256 of 8,192 cells; the others' notes and rows stay.
    assert kv_bytes(windowed, shape) < 0.8 * kv_bytes(full, shape)
    assert kv_bytes(recurrent, shape) == 4 * recurrent.recurrent_bytes


@pytest.mark.parametrize(
    ("name", "reuse", "has_host", "has_disk"),
    [
        ("llama", "blocks", True, True),
        ("mamba", "checkpoints", True, False),
        ("lfm2", "checkpoints", True, False),
        ("gemma3", "checkpoints", True, False),
        ("bert", "none", False, False),
        ("qwen3-embedding", "none", False, False),
        ("t5", "none", False, False),
    ],
)
def test_a_class_gets_the_tiers_that_it_can_use(
    tmp_path: Path, name: str, reuse: str, *, has_host: bool, has_disk: bool
) -> None:
    facts, _ = facts_of(tmp_path, name)
    wanted = model(offload={"maxDisk": "1Gi"}, context={"length": 512})
    placement = place(facts, wanted, pool(), [node()], {})
    assert isinstance(placement, Placement), placement
    plan = placement.plan
    assert reuse_of(facts) == reuse
    assert (plan.host_bytes > 0, plan.disk_bytes > 0) == (has_host, has_disk)
    if not has_disk:
        assert any("no disk tier" in reason for reason in plan.reasons)


def test_a_model_overrides_how_often_and_how_many_states_its_pool_keeps(tmp_path: Path) -> None:
    facts, _ = facts_of(tmp_path, "gemma3")
    wanted = model(offload={"checkpointTokens": 2048}, context={"length": 512})
    common = pool(offload={"checkpointTokens": 64, "checkpointCount": 8})
    placement = place(facts, wanted, common, [node()], {})
    assert isinstance(placement, Placement), placement
    plan = placement.plan
    assert (plan.checkpoint_tokens, plan.checkpoint_count) == (2048, 8)
    assert any("one every 2,048 tokens of a prompt, at most 8" in one for one in plan.reasons)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemma3", "layers with a window of 64 tokens keep 1,024 cells of 32,768"),
        ("lfm2", "recurrent layers keep 512 B per sequence"),
        ("bert", "steps of 8,192 tokens"),
    ],
)
def test_the_plan_says_what_the_class_changes(tmp_path: Path, name: str, words: str) -> None:
    facts, _ = facts_of(tmp_path, name)
    shape = shape_of(8192, 4, kv_unified=False)
    size = footprint(facts, shape)
    assert any(words in one for one in byte_reasons(facts, shape, size, size.limit_bytes))
