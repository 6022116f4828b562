"""How many bytes a replica takes: weights, KV cells, compute buffers, programs.

Owns: the formulas and the measured constants. Does not own: what to do when they do not fit
(``placement.py``). Pure. Source of the formulas: llama.cpp 0c1e570 (llama-kv-cache.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.api.pool import KvType
    from terrace_runtime.contract import ModelFacts

MIB = 1 << 20
CELL_PADDING = 256
"""llama.cpp pads the cells of a sequence to this many."""
KV_BLOCK = 32
KV_BLOCK_BYTES: dict[KvType, int] = {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Bytes of 32 values."""
BASE_BYTES = 320 * MIB


@dataclass(frozen=True, slots=True)
class Shape:
    """What a user or the planner chooses; the rest follows from the model."""

    context_tokens: int
    parallel: int
    ubatch_tokens: int
    threads: int
    kv_key_type: KvType
    kv_value_type: KvType


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one replica."""

    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int
    base_bytes: int

    @property
    def anonymous_bytes(self) -> int:
        """What cannot be reclaimed: the estimate of the peak of RssAnon + RssShmem."""
        return self.repacked_bytes + self.kv_bytes + self.compute_bytes + self.base_bytes

    @property
    def request_bytes(self) -> int:
        """Anonymous memory and all mapped weights: every token reads all of them."""
        return self.anonymous_bytes + self.weights_bytes - self.repacked_bytes

    @property
    def limit_bytes(self) -> int:
        """The request and a tenth of the anonymous part."""
        return self.request_bytes + self.anonymous_bytes // 10


def kv_bytes(facts: ModelFacts, shape: Shape) -> int:
    """KV cells of all sequences, split over sequences (not unified)."""
    cells = _padded(shape.context_tokens)
    total = 0
    for run in facts.layers:
        window = _padded(min(cells, run.window + shape.ubatch_tokens)) if run.window else cells
        keys = run.kv_heads * run.key_length * KV_BLOCK_BYTES[shape.kv_key_type] // KV_BLOCK
        values = run.kv_heads * run.value_length * KV_BLOCK_BYTES[shape.kv_value_type] // KV_BLOCK
        total += run.count * min(cells, window) * (keys + values)
    return total * shape.parallel


def footprint(facts: ModelFacts, shape: Shape) -> Footprint:
    """Bytes of a replica of ``shape``."""
    weights = sum(run.count * run.weight_bytes for run in facts.layers)
    compute = shape.ubatch_tokens * 4 * (8 * facts.embedding_length + facts.vocabulary)
    return Footprint(
        weights_bytes=weights + facts.token_embedding_bytes + facts.output_bytes,
        repacked_bytes=facts.repacked_bytes,
        kv_bytes=kv_bytes(facts, shape),
        compute_bytes=compute + 32 * MIB,
        base_bytes=BASE_BYTES,
    )


def _padded(tokens: int) -> int:
    return -(-tokens // CELL_PADDING) * CELL_PADDING
