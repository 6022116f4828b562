"""How many bytes llama.cpp's graph of the largest step takes, with logits and work space.

Owns: the formula and its measured constants. Does not own: weights and cells (``footprint.py``).
Pure. Constants marked *measured* come from ``no_alloc`` contexts of real shapes (``make
bench-planner``). Next: ``activations.py`` says how many values the layers hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.planner.activations import FLOAT, layers_bytes
from terrace.planner.geometry import (
    DeviceSplit,
    Shape,
    cells,
    padded,
    row_bytes,
    step_tokens,
    window_cells,
)
from terrace.planner.layers import whole_cells
from terrace_runtime.contract import AUTO_UNIFIED_UBATCH

if TYPE_CHECKING:
    from terrace_runtime.contract import ModelFacts

MASK_BYTES = 2
"""The attention mask is f16."""
PAIR_SCORES, PAIR_WIDTHS = 3, 6
"""An encoder-decoder's attention: scores, with bias, and as shares; and six vectors."""
EXACT_WIDTHS = 7
"""Vectors held beside scores that are computed without flash attention."""
EXACT_SCORE_BYTES = 64 << 20
"""Embeddings: the runtime scores tokens without flash attention up to so many bytes."""
WORK_BYTES_PER_VALUE = 1.25
"""Each token's widest vector is quantised for the matrix kernels: at most 292 bytes per 256."""
SHORT_STEP = 32
"""Steps of fewer tokens are computed where the weights lie."""
HOST_EXPERT_WIDTHS = 5
"""Beside what each used expert gives back: *measured* on Qwen3 30B-A3B and gpt-oss, on Vulkan."""
MOVED_WIDTHS = 7
"""*Measured* on Llama 3.1 8B (26 of 28 MiB) and 3.2 1B (10 of 14)."""
ATTENTION_WIDTHS = 4
"""Queries, keys, values and what comes of them. *Measured* on Llama 2 7B and Phi 3 mini."""
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

    With a device the host keeps a step's inputs, the tokens' vectors twice and the logits that come
    back; it computes short steps of the layers that it has, and what it is asked of experts.
    """
    step, split = _step(facts, shape), shape.split
    kept = step.mask + step.logits + step.work
    if split is None or not split.device_layers:
        return step.graph + kept
    if any(run.expert_bytes for run in facts.layers):
        width = facts.embedding_length
        values = (facts.experts_used + HOST_EXPERT_WIDTHS) * width
        return kept + max(FLOAT * step_tokens(facts, shape) * values, 2 * step.embeddings)
    short = step.graph * min(1, SHORT_STEP / shape.ubatch_tokens)
    return kept + 2 * step.embeddings + (0 if _is_whole(facts, split) else int(short))


def device_compute_bytes(facts: ModelFacts, shape: Shape) -> tuple[int, ...]:
    """On each device: the graph with its mask and, where layers stay on the host, their weights.

    llama.cpp computes steps of SHORT_STEP tokens and more on the device even where the weights lie
    on the host (op_offload): it copies one tensor at a time there. Where cells stay on the host,
    queries, keys and values go to and fro. *Measured* on software Vulkan.
    """
    split = shape.split
    if split is None:
        return ()
    step = _step(facts, shape)
    graph = step.graph + step.mask - step.embeddings
    if not split.kv_on_device:
        graph += MOVED_WIDTHS * step.embeddings
    if not _is_whole(facts, split):
        graph = max(graph + _largest_tensor(facts), _copied_cells(facts, shape, step))
    elif split.devices > 1:
        graph += (PIPELINE_COPIES - 1) * (step.mask + step.embeddings)
    return (graph,) * split.devices


def _is_whole(facts: ModelFacts, split: DeviceSplit) -> bool:
    """Whether all layers with their experts lie on devices."""
    return split.device_layers > facts.layer_count and not split.expert_layers_on_host


def _copied_cells(facts: ModelFacts, shape: Shape, step: Step) -> int:
    """Attention of a layer that the host has: its cells are copied to the device too."""
    assert shape.split is not None
    if not shape.split.kv_on_device or shape.split.device_layers > facts.layer_count:
        return 0
    whole = whole_cells(facts, shape)
    layers = (
        row_bytes(run, shape)
        // run.count
        * (window_cells(run.window, shape) if run.window else whole)
        for run in facts.layers
    )
    return max(layers) + ATTENTION_WIDTHS * step.embeddings + step.mask


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
    width, work = facts.embedding_length, work_bytes(facts, shape)
    if facts.model_class == "decoder" and not facts.pooling:
        logits = FLOAT * shape.parallel * (1 + shape.guessed_tokens) * facts.vocabulary
        held = layers_bytes(facts, shape, tokens)
        graph = max(held, logits + FLOAT * tokens * 2 * width)
        return Step(graph, _masks(facts, shape, tokens), logits, work, FLOAT * tokens * width)
    if facts.model_class == "encoder-decoder":
        graph, mask = _pair_graph(facts, shape, tokens)
    else:
        graph, mask = _embedding_graph(facts, shape, tokens)
    # Every token is an output: a row of logits, although nobody reads it, and one of values.
    rows = FLOAT * tokens * (facts.vocabulary + width)
    return Step(graph, mask, rows, work, FLOAT * tokens * width)


def work_bytes(facts: ModelFacts, shape: Shape) -> int:
    """The threads' own space, which llama.cpp does not report."""
    tokens = step_tokens(facts, shape) + shape.parallel - 1
    return int(
        WORK_BYTES_PER_VALUE * tokens * max(facts.embedding_length, facts.feed_forward_length)
    )


def _masks(facts: ModelFacts, shape: Shape, tokens: int) -> int:
    """Each token's row spans the cells of its sequence, in unified KV those of all."""
    if shape.tiers.is_auto:
        split = replace(shape, tiers=replace(shape.tiers, is_auto=False))
        unified = replace(split, tiers=replace(split.tiers, is_unified=True))
        few = min(tokens, AUTO_UNIFIED_UBATCH + shape.parallel - 1)
        return max(_masks(facts, split, tokens), _masks(facts, unified, few))
    rows = shape.parallel if shape.tiers.is_unified else 1
    full = any(run.kv_heads and not run.window for run in facts.layers) * cells(shape) * rows
    window = max((run.window for run in facts.layers if run.kv_heads), default=0)
    slid = window_cells(window, shape) // (1 if shape.tiers.is_unified else shape.parallel)
    return MASK_BYTES * tokens * (full + (slid if window else 0))


def _pair_graph(facts: ModelFacts, shape: Shape, tokens: int) -> tuple[int, int]:
    """Positions are a bias to each score, so there is no flash attention. *Measured*: T5 base, XL.

    Scores are held three times, or every token's row of logits.
    """
    width, reach = facts.embedding_length, max(tokens, cells(shape))
    scores = PAIR_SCORES * facts.heads * reach + PAIR_WIDTHS * width
    logits = facts.vocabulary + 2 * width
    held = max(FLOAT * tokens * max(scores, logits), layers_bytes(facts, shape, tokens))
    return held, 2 * FLOAT * tokens * reach


def _embedding_graph(facts: ModelFacts, shape: Shape, tokens: int) -> tuple[int, int]:
    """Short inputs are scored without flash attention. *Measured*: five encoders of 22M to 567M."""
    reach = tokens if facts.model_class == "encoder" else cells(shape) + padded(tokens)
    held = layers_bytes(facts, shape, tokens)
    scores = FLOAT * facts.heads * tokens * reach
    mask = MASK_BYTES * tokens * reach
    if scores <= EXACT_SCORE_BYTES:
        held = max(held, scores + FLOAT * tokens * EXACT_WIDTHS * facts.embedding_length)
        mask *= 2  # As f32.
    if facts.model_class == "decoder":
        held = max(held, FLOAT * tokens * (facts.vocabulary + 2 * facts.embedding_length))
        mask *= 1 + any(run.window for run in facts.layers)
    return held, mask
