"""How many f32 values a step's graph holds at once, by the model's widths.

Owns: the formulas, *measured* on 69 real shapes with ``no_alloc`` contexts of llama.cpp 0c1e570
(``make bench-planner`` repeats it, docs/benchmarks/planner.md has the figures). The graph is low by
9 % at most (Falcon H1 7B with quantised cells; Command R, Qwen2 57B: 7 %), within every limit's
margin, and half too large for Mamba 2 with steps of few tokens per sequence.
Does not own: masks, logits, bytes (``compute_buffer.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.planner.geometry import Shape
    from terrace_runtime.contract import ModelFacts

FLOAT = 4
RESIDUAL_WIDTHS = 3
"""The layer's input, its norm and what attention adds."""
GATED_PARTS, PLAIN_PARTS = 3, 1
"""Feed-forward vectors that live at once: gate, up and their product; without a gate one."""
UNKNOWN_EXPERT_WIDTHS = 26
"""Where older facts have no width of experts; Qwen3 30B-A3B takes 22."""
LATENT_QUERIES = 3
"""Latent attention: queries over the latent row, what comes of it, and a copy in another order."""
MIXER_PARTS, MIXER_RESIDUALS = 6, 2
"""A recurrent layer: its input's two halves, convolved, its steps, its output, a copy."""
STATE_COPIES = 2
"""Of each sequence's state of one layer, and of one sequence more: gathered and updated."""


def layers_bytes(facts: ModelFacts, shape: Shape, tokens: int) -> int:
    """Of a step of ``tokens``: the largest of what each kind of layer needs."""
    held = max(_feed_forward(facts, shape), _experts(facts, shape), _latent(facts))
    of_layers = max(FLOAT * tokens * held, _mixer_bytes(facts, shape, tokens))
    return of_layers + FLOAT * tokens * facts.widths.carried


def _residual(facts: ModelFacts, shape: Shape) -> int:
    """What lives through a layer; the queries' place is reused by what comes after attention."""
    width, query = facts.embedding_length, facts.widths.query
    if _is_latent(facts):
        query = facts.heads * _latent_row(facts)
    elif shape.kv_key_type != "f16" and query < width:
        query *= 2  # Quantised cells: queries are rotated first.
    return RESIDUAL_WIDTHS * width + max(width, query)


def _feed_forward(facts: ModelFacts, shape: Shape) -> int:
    if all(run.expert_bytes for run in facts.layers):
        return 0
    parts = GATED_PARTS if facts.widths.gated else PLAIN_PARTS
    return parts * facts.feed_forward_length + _residual(facts, shape)


def _experts(facts: ModelFacts, shape: Shape) -> int:
    width = facts.embedding_length
    if not any(run.expert_bytes for run in facts.layers):
        return 0
    if not facts.widths.expert:
        return UNKNOWN_EXPERT_WIDTHS * width
    inside, out = (facts.experts_used * size for size in (facts.widths.expert, width))
    # What experts give back fits into the place of gate and up, or comes on top.
    on_top = out if out > 2 * inside else 0
    return GATED_PARTS * inside + on_top + _residual(facts, shape) + width


def _latent(facts: ModelFacts) -> int:
    return LATENT_QUERIES * facts.heads * _latent_row(facts) if _is_latent(facts) else 0


def _is_latent(facts: ModelFacts) -> bool:
    return _latent_row(facts) > 0


def _latent_row(facts: ModelFacts) -> int:
    """Values of a latent row; 0: keys and values are kept apart."""
    rows = (run.key_length for run in facts.layers if run.kv_heads and not run.value_length)
    return max(rows, default=0)


def _mixer_bytes(facts: ModelFacts, shape: Shape, tokens: int) -> int:
    if not facts.widths.mixer:
        return 0
    held = MIXER_PARTS * facts.widths.mixer + MIXER_RESIDUALS * facts.embedding_length
    states = STATE_COPIES * (shape.parallel + 1) * max(run.state_bytes for run in facts.layers)
    return FLOAT * tokens * held + states
