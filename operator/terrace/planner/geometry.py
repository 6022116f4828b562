"""The shape of a replica's KV cache: what is chosen, and the cells and rows that follow from it.

Owns: Shape; cells, rows, windows and steps in llama.cpp's own counting (0c1e570). Does not own: all
other bytes (``compute_buffer.py``, ``footprint.py``). Pure. Next: ``footprint.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.planner.tiers import NO_TIERS, Tiers

if TYPE_CHECKING:
    from terrace.api.values import KvType
    from terrace_runtime.contract import LayerRun, ModelFacts

CELL_PADDING = 256
"""llama.cpp pads the cells of a sequence to a multiple of this."""
KV_BLOCK = 32
KV_BLOCK_BYTES: dict[KvType, int] = {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Bytes of KV_BLOCK values (ggml's block sizes)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a user or the planner chooses; the rest follows from the model."""

    context_tokens: int
    parallel: int
    ubatch_tokens: int
    kv_key_type: KvType
    kv_value_type: KvType
    guessed_tokens: int = 0
    """Tokens guessed ahead per sequence: each asks for logits of its own."""
    tiers: Tiers = NO_TIERS


def cells(shape: Shape) -> int:
    """KV cells of one sequence."""
    return padded(shape.context_tokens)


def padded(tokens: int) -> int:
    """``tokens`` as so many cells."""
    return -(-tokens // CELL_PADDING) * CELL_PADDING


def window_cells(window: int, shape: Shape) -> int:
    """KV cells of all sequences in a layer with a sliding window: it, and what a step adds.

    The runtime leaves llama.cpp's ``swa_full`` off; prefixes are reused from checkpoints.
    """
    if shape.tiers.is_unified:
        needed = padded(window * (shape.parallel + 1) + shape.ubatch_tokens)
    else:
        needed = padded(window + shape.ubatch_tokens) * shape.parallel
    return min(needed, cells(shape) * shape.parallel)


def kv_bytes_per_cell(facts: ModelFacts, shape: Shape) -> int:
    """Keys and values of one token in all layers, those included that soon forget it."""
    return sum(row_bytes(run, shape) for run in facts.layers)


def row_bytes(run: LayerRun, shape: Shape) -> int:
    """Keys and values of one token in all layers of ``run``."""
    keys, values = KV_BLOCK_BYTES[shape.kv_key_type], KV_BLOCK_BYTES[shape.kv_value_type]
    row = run.key_length * keys + run.value_length * values
    return run.count * run.kv_heads * row // KV_BLOCK


def step_tokens(facts: ModelFacts, shape: Shape) -> int:
    """Tokens of the largest graph: an encoder takes its longest input at once."""
    at_once = facts.model_class != "decoder" or facts.pooling not in ("", "last")
    return max(shape.ubatch_tokens, cells(shape)) if at_once else shape.ubatch_tokens
