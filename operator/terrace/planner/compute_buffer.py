"""How many bytes llama.cpp's graph of the largest step takes, with logits and work space.

Owns: the formula and its measured constants. Does not own: weights and cells (``footprint.py``).
Pure. Constants marked *measured* come from ``no_alloc`` contexts shaped as Llama 3 8B and 1B, Qwen3
0.6B, 8B, 30B-A3B, Gemma 3 4B. Next: ``footprint.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.planner.geometry import DeviceSplit, Shape, cells, padded, step_tokens

if TYPE_CHECKING:
    from terrace_runtime.contract import ModelFacts

FLOAT = 4
MASK_BYTES = 2
"""The attention mask is f16."""
WIDTHS_PER_TOKEN = 4
FEED_FORWARDS_PER_TOKEN = 3
"""*Measured*: the graph holds 3 feed-forward and 4 embedding vectors of f32 per token at its peak.
Exact for Llama 3 8B (124 MiB) and Qwen3 8B (112 MiB), at most 13 % too much for the others."""
EXPERT_WIDTHS_PER_TOKEN = 26
"""*Measured* on Qwen3 30B-A3B (8 experts used: 22 widths); two more experts are allowed for."""
EXACT_SCORE_BYTES = 64 << 20
"""Embeddings: the runtime scores tokens without flash attention up to so many bytes."""
WORK_BYTES_PER_VALUE = 1.25
"""Each token's widest vector is quantised for the matrix kernels: at most 292 bytes per 256."""
PIPELINE_COPIES = 4
"""Several devices with everything on them work on several steps at once (GGML_SCHED_MAX_COPIES):
each keeps so many of a step's inputs."""
LARGEST_SHARE = 0.42
"""Of a layer: three matrices of one size, one of them Q6_K where the others are Q4_K."""


@dataclass(frozen=True, slots=True)
class Step:
    """The parts of the largest step's buffers, wherever they lie."""

    graph: int
    mask: int
    logits: int
    work: int
    embeddings: int
    """The step's tokens as vectors: what the token embedding, always on the host, hands on."""


def compute_bytes(facts: ModelFacts, shape: Shape) -> int:
    """In host memory: graph buffer, logits and the threads' work space of the largest step.

    With everything on devices the host keeps a step's inputs and the logits that come back.
    """
    step = _step(facts, shape)
    if shape.split is None or not _is_whole(facts, shape.split):
        return step.graph + step.mask + step.logits + step.work
    return step.embeddings + step.mask + step.logits + step.work


def device_compute_bytes(facts: ModelFacts, shape: Shape) -> tuple[int, ...]:
    """On each device: the graph with its mask and, where layers stay on the host, their weights.

    llama.cpp computes steps of 32 tokens and more on the device even where the weights lie on the
    host (op_offload): it copies one tensor at a time there.
    """
    if shape.split is None:
        return ()
    step = _step(facts, shape)
    graph = step.graph + step.mask
    if not _is_whole(facts, shape.split):
        graph += _largest_tensor(facts)
    elif shape.split.devices > 1:
        graph += (PIPELINE_COPIES - 1) * (step.mask + step.embeddings)
    return (graph,) * shape.split.devices


def _is_whole(facts: ModelFacts, split: DeviceSplit) -> bool:
    """Whether all layers, their experts and cells lie on devices."""
    return (
        split.device_layers > facts.layer_count
        and not split.expert_layers_on_host
        and split.kv_on_device
    )


def _largest_tensor(facts: ModelFacts) -> int:
    """A bound of the largest tensor of a layer; the header's sizes are summed by layer."""
    largest = max(max(run.expert_bytes, run.weight_bytes) for run in facts.layers)
    return int(LARGEST_SHARE * largest)


def _step(facts: ModelFacts, shape: Shape) -> Step:
    """The parts of the largest step.

    A step is padded to the same number of tokens for each sequence: by less than one per sequence.
    One logits row per sequence is kept and, in the graph, computed; there the row may take the
    place of the layers' buffers.
    """
    # The exact padding shrinks when one more sequence happens to divide the step; a bound does not.
    tokens = step_tokens(facts, shape) + shape.parallel - 1
    width, wide = facts.embedding_length, facts.feed_forward_length
    floats = FEED_FORWARDS_PER_TOKEN * wide + WIDTHS_PER_TOKEN * width
    if any(run.expert_bytes for run in facts.layers):
        floats = max(floats, EXPERT_WIDTHS_PER_TOKEN * width)
    masks = 2 if any(run.window for run in facts.layers) else 1
    # Unified KV: each token's row of the mask spans the cells of all sequences.
    rows = shape.parallel if shape.tiers.is_unified else 1
    mask = masks * MASK_BYTES * tokens * cells(shape) * rows
    logits = FLOAT * shape.parallel * (1 + shape.guessed_tokens) * facts.vocabulary
    scores = 0
    if facts.model_class == "encoder-decoder":
        # Every token is an output, and positions are a bias to each score: no flash attention.
        logits = FLOAT * tokens * facts.vocabulary
        scores = 4 * FLOAT * facts.heads * tokens * max(tokens, cells(shape))
    elif facts.pooling:
        # Every token is an output, and short inputs are scored without flash attention.
        if facts.model_class == "decoder":
            logits = 2 * FLOAT * tokens * facts.vocabulary
        logits += FLOAT * tokens * width
        reach = tokens if facts.model_class == "encoder" else cells(shape) + padded(tokens)
        mask = masks * MASK_BYTES * tokens * reach
        scores = 2 * min(EXACT_SCORE_BYTES, FLOAT * facts.heads * tokens * reach)
    graph = scores + max(FLOAT * tokens * floats, logits + FLOAT * tokens * 2 * width)
    work = int(WORK_BYTES_PER_VALUE * tokens * max(width, wide))
    return Step(graph, mask, logits, work, FLOAT * tokens * width)
