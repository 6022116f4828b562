"""What each block of a model weighs and keeps, in order, as runs of equal blocks.

Owns: the meaning of tensor names per layer. Does not own: what attention and recurrent layers keep
(``attention.py``, ``recurrent.py``), totals (``facts``) or shortening (``fit``). Pure. Tensor
names: llama.cpp ``src/llama-arch.cpp`` at 0c1e57098. Next: ``facts``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import LayerRun
from terrace_runtime.models.attention import Memory, layer_memories, trunk_layers
from terrace_runtime.models.gguf_types import REPACK_ROWS, REPACKED_TYPES
from terrace_runtime.models.metadata import MAX_LAYERS, invalid_model, names_of
from terrace_runtime.models.recurrent import state_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.models.gguf_header import Tensor
    from terrace_runtime.models.metadata import Keys

_BLOCK = re.compile(r"^(?:enc\.|dec\.)?blk\.(\d{1,4})\.(.+)$")
_EXPERTS = re.compile(r"^ffn_(up|down|gate|gate_up)_(ch)?exps\b")
_FEED_FORWARD = re.compile(r"^blk\.\d+\.ffn_(up|down|gate|gate_up)\.weight$")
_DRAFTS_ARE_LEFT_OUT: Final = names_of(
    """
    bailingmoe3 cohere2moe deepseek2 deepseek32 deepseek4 glm-dsa glm4moe glm5-next hy_v3 mimo2
    nemotron_h nemotron_h_moe qwen35 qwen35moe qwen3next step35
    """
)
"""Architectures whose drafting layers llama.cpp reads only on request (``load_mtp``)."""


@dataclass
class _Weights:
    total: int = 0
    experts: int = 0
    feed_forward: int = 0
    repacked: int = 0


def layer_runs(
    keys: Keys, tensors: Iterable[Tensor], *, has_cells: bool = True
) -> tuple[LayerRun, ...]:
    """Sizes and KV geometry of the blocks, in order, equal neighbours joined.

    ``has_cells`` is false for encoders, which keep nothing between two batches.
    """
    count = max(keys.positive("block_count"), keys.number("decoder_block_count", 0))
    if count > MAX_LAYERS:
        invalid_model(f"it claims {count} layers; the limit is {MAX_LAYERS}")
    weights = _weights(tensors, count)
    if keys.architecture in _DRAFTS_ARE_LEFT_OUT:
        trunk = trunk_layers(keys, count)
        weights[trunk:] = [_Weights() for _ in weights[trunk:]]
    memories = layer_memories(keys, count, has_cells=has_cells)
    state = state_bytes(keys) if any(memory.is_recurrent for memory in memories) else 0
    runs: list[LayerRun] = []
    for weight, memory in zip(weights, memories, strict=True):
        run = _run(weight, memory, state)
        if runs and runs[-1].model_copy(update={"count": 1}) == run:
            runs[-1] = runs[-1].model_copy(update={"count": runs[-1].count + 1})
        else:
            runs.append(run)
    return tuple(runs)


def is_in_a_block(tensor: Tensor) -> bool:
    """Whether it belongs to a layer."""
    return _BLOCK.match(tensor.name) is not None


def repacked_bytes(tensor: Tensor) -> int:
    """Bytes of ``tensor`` that CPU kernels copy, where they multiply by it."""
    is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight")
    if not is_matrix or tensor.type.name not in REPACKED_TYPES:
        return 0
    return 0 if tensor.shape[1] % REPACK_ROWS else tensor.num_bytes


def _weights(tensors: Iterable[Tensor], count: int) -> list[_Weights]:
    layers = [_Weights() for _ in range(count)]
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        if match is None:
            continue
        index, rest = int(match[1]), match[2]
        if index >= count:
            invalid_model(f"tensor {tensor.name!r} lies outside the {count} layers")
        layer = layers[index]
        layer.total += tensor.num_bytes
        layer.experts += tensor.num_bytes if _EXPERTS.match(rest) else 0
        layer.feed_forward += tensor.num_bytes if _FEED_FORWARD.match(tensor.name) else 0
        layer.repacked += repacked_bytes(tensor)
    return layers


def _run(weight: _Weights, memory: Memory, state: int) -> LayerRun:
    cells = memory.cells
    return LayerRun(
        count=1,
        weight_bytes=weight.total,
        expert_bytes=weight.experts,
        feed_forward_bytes=weight.feed_forward,
        kv_heads=cells.kv_heads,
        key_length=cells.key_length,
        value_length=cells.value_length,
        window=cells.window,
        repacked_bytes=weight.repacked,
        state_bytes=state if memory.is_recurrent else 0,
    )
