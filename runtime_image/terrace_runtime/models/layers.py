"""What each block of a model weighs and how many KV values it keeps per token.

Owns: the meaning of tensor names and attention keys per layer. Does not own: totals (``facts``) or
shortening (``fit``). Pure. Where a number is in doubt the larger one counts. Key names and
their meaning: llama.cpp ``src/llama-arch.cpp`` and ``src/models/*.cpp`` at 0c1e57098.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import LayerRun
from terrace_runtime.models.gguf_header import Skipped
from terrace_runtime.models.metadata import MAX_LAYERS, invalid_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.models.gguf_header import Tensor
    from terrace_runtime.models.metadata import Keys

_BLOCK = re.compile(r"^(?:enc\.|dec\.)?blk\.(\d{1,4})\.(.+)$")
_EXPERTS = re.compile(r"^ffn_(up|down|gate|gate_up)_(ch)?exps\b")
_ATTENTION = re.compile(r"^attn_(k|qkv|kv_a_mqa)\b")
_RECURRENT = re.compile(r"^(ssm_|time_mix_|shortconv)")
_PERIODS: Final = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "mellum": 4,
    "muse-glimmer": 4,
    "olmo2": 4,
    "plamo3": 8,
}
"""Architectures in which every n-th layer sees all unless the header says otherwise, with their n
(``load_swa_pattern``)."""
_PATTERNS: Final = frozenset(
    {"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}
)
"""Those that need one claim per layer. For all others full attention counts."""
_EXAONE4_LAYERS: Final = 64
"""The one size of exaone4 that slides."""


@dataclass
class _Layer:
    weight_bytes: int = 0
    expert_bytes: int = 0
    has_attention: bool = False
    is_recurrent: bool = False


def layer_runs(
    keys: Keys, tensors: Iterable[Tensor], *, has_cells: bool = True
) -> tuple[LayerRun, ...]:
    """Sizes and KV geometry of the blocks, in order, equal neighbours joined.

    ``has_cells`` is false for encoders, which keep nothing between two batches.
    """
    num_layers = max(keys.positive("block_count"), keys.number("decoder_block_count", 0))
    if num_layers > MAX_LAYERS:
        invalid_model(f"it claims {num_layers} layers; the limit is {MAX_LAYERS}")
    layers = [_Layer() for _ in range(num_layers)]
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        if match is None:
            continue
        index, rest = int(match[1]), match[2]
        if index >= num_layers:
            invalid_model(f"tensor {tensor.name!r} lies outside the {num_layers} layers")
        layer = layers[index]
        layer.weight_bytes += tensor.num_bytes
        layer.expert_bytes += tensor.num_bytes if _EXPERTS.match(rest) else 0
        layer.has_attention |= bool(_ATTENTION.match(rest))
        layer.is_recurrent |= bool(_RECURRENT.match(rest))
    return _runs(keys, layers, _kv_heads(keys, layers) if has_cells else [0] * num_layers)


def _runs(keys: Keys, layers: list[_Layer], kv_heads: list[int]) -> tuple[LayerRun, ...]:
    count = len(layers)
    key_length, value_length = _head_lengths(keys)
    windows = _windows(keys, count)
    runs: list[LayerRun] = []
    for index, layer in enumerate(layers):
        run = LayerRun(
            count=1,
            weight_bytes=layer.weight_bytes,
            expert_bytes=layer.expert_bytes,
            kv_heads=kv_heads[index],
            key_length=key_length if kv_heads[index] else 0,
            value_length=value_length if kv_heads[index] else 0,
            window=windows[index] if kv_heads[index] else 0,
        )
        if runs and runs[-1].model_copy(update={"count": 1}) == run:
            runs[-1] = runs[-1].model_copy(update={"count": runs[-1].count + 1})
        else:
            runs.append(run)
    return tuple(runs)


def _kv_heads(keys: Keys, layers: list[_Layer]) -> list[int]:
    """KV heads per layer; 0 where the layer keeps no cells."""
    count = len(layers)
    heads = keys.per_layer("attention.head_count", count, 0)
    if keys.get("attention.kv_lora_rank") is not None:
        kv_heads = [1] * count  # Multi-head latent attention keeps one compressed row per token.
    else:
        kv_heads = keys.per_layer("attention.head_count_kv", count, 0)[:count]
        if keys.get("attention.head_count_kv") is None:
            kv_heads = heads[:count]
    interval = keys.number("full_attention_interval", 0)
    shared = keys.number("attention.shared_kv_layers", 0)
    for index, layer in enumerate(layers):
        is_linear = interval > 1 and (index + 1) % interval != 0
        only_recurrent = layer.is_recurrent and not layer.has_attention
        if is_linear or only_recurrent or index >= count - shared:
            kv_heads[index] = 0
    return kv_heads


def _head_lengths(keys: Keys) -> tuple[int, int]:
    """Values per head of a key row and of a value row."""
    rank = keys.number("attention.kv_lora_rank", 0)
    if rank:
        # llama.cpp keeps keys alone: the latent row and the rotated part (n_embd_head_k).
        return keys.number("attention.key_length", rank + keys.number("rope.dimension_count", 0)), 0
    heads = max(keys.per_layer("attention.head_count", 1, 0))
    plain = keys.positive("embedding_length") // heads if heads else 0
    return keys.number("attention.key_length", plain), keys.number("attention.value_length", plain)


def _windows(keys: Keys, count: int) -> list[int]:
    """Sliding window per layer in tokens, 0 for full attention; only where llama.cpp slides."""
    window = keys.number("attention.sliding_window", 0)
    pattern = keys.get("attention.sliding_window_pattern")
    period = _PERIODS.get(keys.architecture, 0)
    if keys.architecture == "exaone4" and count != _EXAONE4_LAYERS:
        period = 0
    if not window or isinstance(pattern, (str, Skipped)):
        return [0] * count
    if isinstance(pattern, tuple):
        is_read = period or keys.architecture in _PATTERNS
        slides = [bool(is_read and item) for item in pattern[:count]]
        return [window if slide else 0 for slide in slides] + [0] * (count - len(slides))
    period = keys.number("attention.sliding_window_pattern", period) if period else 0
    return [window if period and index % period < period - 1 else 0 for index in range(count)]
