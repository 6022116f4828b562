"""Cells, states and graphs of real shapes against what llama.cpp 0c1e570 reported for them.

The numbers are its own, of ``no_alloc`` contexts (``bench.allocation``); `make bench-planner` asks
it anew for all shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.model_shapes import facts
from terrace.planner.compute_buffer import compute_bytes, work_bytes
from terrace.planner.footprint import kv_bytes, note_bytes
from terrace.planner.geometry import Shape, step_tokens

if TYPE_CHECKING:
    from terrace.api.values import KvType

MIB = 2**20
TOO_LITTLE, TOO_MUCH = 0.97, 1.32

GRAPHS = [
    # Shape, context, sequences, compute buffer in MiB; f16 cells, steps of 512 tokens.
    ("llama-3.1-8b", 4096, 4, 120.0),
    ("qwen3-32b", 4096, 4, 200.0),
    ("gemma-3-4b", 4096, 4, 84.5),
    ("gemma-3n-e4b", 4096, 4, 156.0),
    ("starcoder2-15b", 4096, 4, 100.0),
    ("qwen3-30b-a3b", 4096, 4, 92.0),
    ("olmoe-1b-7b", 4096, 4, 68.0),
    ("granite-3.1-3b-a800m", 4096, 4, 64.0),
    ("mixtral-8x7b", 4096, 4, 204.0),
    ("gpt-oss-20b", 4096, 4, 97.1),
    ("llama-4-scout", 4096, 4, 106.1),
    ("deepseek-v2-lite", 4096, 4, 93.0),
    ("deepseek-v3", 4096, 4, 412.0),
    ("mamba-2.8b", 4096, 4, 66.7),
    ("mamba2-codestral-7b", 4096, 4, 137.2),
    ("rwkv7-2.9b", 4096, 4, 100.3),
    ("jamba-1.5-mini", 4096, 4, 196.1),
    ("falcon-h1-1.5b", 4096, 4, 63.4),
    ("nemotron-h-8b", 4096, 4, 137.2),
    ("qwen3-next-80b-a3b", 4096, 4, 90.0),
    ("kimi-linear-48b-a3b", 4096, 4, 109.5),
    ("all-minilm-l6", 512, 1, 17.6),
    ("nomic-embed-v1.5", 2048, 1, 92.5),
    ("bge-m3", 2048, 1, 64.0),
    ("flan-t5-base", 512, 1, 65.8),
    ("flan-t5-xl", 512, 1, 118.0),
]
CELLS = [
    # Shape, context, sequences, type of cells, cells and recurrent states in MiB.
    ("llama-3.1-8b", 4096, 4, "f16", 2048.00, 0.00),
    ("gemma-3-4b", 16384, 2, "q8_0", 524.88, 0.00),
    ("gpt-oss-20b", 32768, 1, "f16", 786.00, 0.00),
    ("gemma-3n-e4b", 4096, 4, "f16", 256.00, 0.00),
    ("deepseek-v3", 4096, 4, "f16", 1098.00, 0.00),
    ("command-r7b", 32768, 1, "f16", 1456.00, 0.00),
    ("llama-4-scout", 32768, 1, "f16", 2760.00, 0.00),
    ("mamba2-codestral-7b", 4096, 4, "f16", 0.00, 1054.00),
    ("rwkv7-2.9b", 4096, 4, "f16", 0.00, 82.50),
    ("jamba-1.5-mini", 4096, 4, "f16", 256.00, 66.50),
    ("lfm2-1.2b", 4096, 4, "f16", 192.00, 0.62),
    ("falcon-h1-7b", 4096, 4, "f16", 704.00, 535.22),
    ("nemotron-h-8b", 4096, 4, "f16", 256.00, 395.25),
    ("granite-4.0-h-tiny", 4096, 4, "f16", 128.00, 221.48),
    ("qwen3-next-80b-a3b", 4096, 4, "f16", 384.00, 301.50),
    ("kimi-linear-48b-a3b", 4096, 4, "f16", 126.00, 171.25),
    ("glm-4.5-air", 4096, 4, "f16", 2944.00, 0.00),
]


@pytest.mark.parametrize(("name", "context", "parallel", "reported"), GRAPHS)
def test_a_graph_is_planned_as_large_as_llama_cpp_makes_it(
    name: str, context: int, parallel: int, reported: float
) -> None:
    known = facts(name)
    shape = Shape(context, parallel, 512, "f16", "f16")
    rows = parallel
    if known.model_class != "decoder":
        rows = step_tokens(known, shape)
    logits = 4 * rows * (known.vocabulary + known.embedding_length * (rows != parallel))
    graph = compute_bytes(known, shape) - work_bytes(known, shape) - logits
    assert TOO_LITTLE * reported <= graph / MIB <= TOO_MUCH * reported


@pytest.mark.parametrize(("name", "context", "parallel", "kind", "cells", "states"), CELLS)
def test_cells_and_states_are_planned_to_the_byte(
    name: str, context: int, parallel: int, kind: KvType, cells: float, states: float
) -> None:
    known = facts(name)
    shape = Shape(context, parallel, 512, kind, kind)
    planned = kv_bytes(known, shape) - note_bytes(known, shape)
    assert planned / MIB == pytest.approx(cells + states, abs=0.03)
