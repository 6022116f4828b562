"""Kimi Linear: llama.cpp aborts where an evaluation's tokens are not as many of each sequence."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.allocation import Ask, ask
from support.model_shapes import facts, write_header
from support.planning import GIB, model, node, place, pool
from terrace.planner.placement import Placement

NAME = "kimi-linear-48b-a3b"
TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("parallel", "layout", "tokens"),
    [(3, "Split", 510), (3, "Auto", 510), (3, "Unified", 512), (4, "Split", 512)],
)
def test_a_step_has_equally_many_tokens_of_each_sequence(
    parallel: int, layout: str, tokens: int
) -> None:
    spec = model(context={"length": 2048, "parallel": parallel}, offload={"kvLayout": layout})
    answer = place(facts(NAME), spec, pool(), [node(memory_bytes=256 * GIB)], {})
    assert isinstance(answer, Placement), answer
    assert answer.plan.ubatch_tokens == tokens


@pytest.mark.parametrize("parallel", [3, 5])
def test_what_is_planned_opens_and_512_tokens_would_not(parallel: int, tmp_path: Path) -> None:
    """Without memory (no_alloc): nothing of the 48B parameters is read."""
    file = write_header(NAME, tmp_path / "kimi.gguf")
    here = {"PYTHONPATH": str(TESTS)}
    assert ask(file, [Ask(2048, parallel, ubatch=512 - 512 % parallel)], environment=here)
    with pytest.raises(RuntimeError, match="GGML_ASSERT"):
        ask(file, [Ask(2048, parallel, ubatch=512)], environment=here)
