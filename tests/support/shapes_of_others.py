"""Sizes of real models with recurrent layers, of encoders and of encoder-decoders.

``source`` is the repository on the Hugging Face hub whose config.json says so.
"""

from __future__ import annotations

from typing import Final

from support.shape_tensors import ModelShape
from support.shape_tensors_recurrent import (
    bert_blocks,
    falcon_h1_blocks,
    granite_hybrid_blocks,
    jamba_blocks,
    kimi_linear_blocks,
    lfm2_blocks,
    mamba_blocks,
    nemotron_h_blocks,
    qwen3next_blocks,
    rwkv7_blocks,
    t5_blocks,
)


def _set(*traits: str) -> frozenset[str]:
    return frozenset(traits)


def _ssm(inner: int, state: int, rank: int, groups: int = 0) -> dict[str, int]:
    keys = {
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "ssm.conv_kernel": 4,
    }
    return keys | ({"ssm.group_count": groups} if groups else {})


def _at(layers: int, places: tuple[int, ...], value: int) -> tuple[int, ...]:
    """``value`` in the layers of ``places``, 0 in the others."""
    return tuple(value if layer in places else 0 for layer in range(layers))


_NEMOTRON_LAYERS: Final = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
"""hybrid_override_pattern: Mamba, feed-forward, attention."""
_KIMI_ATTENTION: Final = (3, 7, 11, 15, 19, 23, 26)

RECURRENT: Final[dict[str, ModelShape]] = {
    "mamba-2.8b": ModelShape(
        "mamba",
        "state-spaces/mamba-2.8b-hf",
        2560,
        64,
        50280,
        1_048_576,
        is_tied=True,
        blocks=mamba_blocks,
        keys=_ssm(5120, 16, 160),
    ),
    "mamba2-codestral-7b": ModelShape(
        "mamba2",
        "mistralai/Mamba-Codestral-7B-v0.1",
        4096,
        64,
        32768,
        1_048_576,
        blocks=mamba_blocks,
        keys=_ssm(8192, 128, 128, 8),
    ),
    "rwkv7-2.9b": ModelShape(
        "rwkv7",
        "fla-hub/rwkv7-2.9B-world",
        2560,
        32,
        65536,
        1_048_576,
        feed_forward=10240,
        blocks=rwkv7_blocks,
        traits=_set("norm bias"),
        keys={
            "wkv.head_size": 64,
            "attention.decay_lora_rank": 96,
            "attention.iclr_lora_rank": 96,
            "attention.value_residual_mix_lora_rank": 64,
            "attention.gate_lora_rank": 320,
        },
    ),
    "jamba-1.5-mini": ModelShape(
        "jamba",
        "ai21labs/AI21-Jamba-1.5-Mini",
        4096,
        32,
        65536,
        262_144,
        feed_forward=14336,
        heads=32,
        kv_heads=_at(32, (4, 12, 20, 28), 8),
        experts=16,
        experts_used=2,
        expert_width=14336,
        blocks=jamba_blocks,
        keys=_ssm(8192, 16, 256),
    ),
    "lfm2-1.2b": ModelShape(
        "lfm2",
        "LiquidAI/LFM2-1.2B",
        2048,
        16,
        65536,
        128_000,
        feed_forward=8192,
        heads=32,
        kv_heads=_at(16, (2, 5, 8, 10, 12, 14), 8),
        norms="head",
        is_tied=True,
        blocks=lfm2_blocks,
        traits=_set("embedding norm"),
        keys={"shortconv.l_cache": 3},
    ),
    "falcon-h1-1.5b": ModelShape(
        "falcon-h1",
        "tiiuae/Falcon-H1-1.5B-Base",
        2048,
        24,
        65537,
        131_072,
        feed_forward=4096,
        heads=8,
        kv_heads=2,
        head=128,
        blocks=falcon_h1_blocks,
        keys=_ssm(3072, 256, 48, 1),
    ),
    "falcon-h1-7b": ModelShape(
        "falcon-h1",
        "tiiuae/Falcon-H1-7B-Base",
        3072,
        44,
        130_049,
        262_144,
        feed_forward=12288,
        heads=12,
        kv_heads=2,
        head=128,
        blocks=falcon_h1_blocks,
        keys=_ssm(3072, 256, 24, 1),
    ),
    "nemotron-h-8b": ModelShape(
        "nemotron_h",
        "nvidia/Nemotron-H-8B-Base-8K",
        4096,
        52,
        131_072,
        8192,
        head=128,
        feed_forward=tuple(21504 if kind == "-" else 0 for kind in _NEMOTRON_LAYERS),
        heads=32,
        kv_heads=tuple(8 if kind == "*" else 0 for kind in _NEMOTRON_LAYERS),
        blocks=nemotron_h_blocks,
        traits=_set("no gate"),
        keys=_ssm(8192, 128, 128, 8),
    ),
    "granite-4.0-h-tiny": ModelShape(
        "granitehybrid",
        "ibm-granite/granite-4.0-h-tiny-base",
        1536,
        40,
        100_352,
        131_072,
        feed_forward=512,
        heads=12,
        kv_heads=_at(40, (5, 15, 25, 35), 4),
        experts=64,
        experts_used=6,
        expert_width=512,
        shared_width=1024,
        is_tied=True,
        blocks=granite_hybrid_blocks,
        keys=_ssm(3072, 128, 48, 1),
    ),
    "qwen3-next-80b-a3b": ModelShape(
        "qwen3next",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        2048,
        48,
        151_936,
        262_144,
        feed_forward=5120,
        heads=16,
        kv_heads=2,
        head=256,
        norms="head",
        experts=512,
        experts_used=10,
        expert_width=512,
        shared_width=512,
        blocks=qwen3next_blocks,
        traits=_set("gated share", "attention post-norm"),
        keys=_ssm(4096, 128, 32, 16) | {"full_attention_interval": 4},
    ),
    "kimi-linear-48b-a3b": ModelShape(
        "kimi-linear",
        "moonshotai/Kimi-Linear-48B-A3B-Base",
        2304,
        27,
        163_840,
        1_048_576,
        feed_forward=9216,
        heads=32,
        kv_heads=_at(27, _KIMI_ATTENTION, 1),
        dense_layers=1,
        experts=256,
        experts_used=8,
        expert_width=1024,
        shared_width=1024,
        blocks=kimi_linear_blocks,
        traits=_set("score bias"),
        keys={
            "kda.head_dim": 128,
            "ssm.conv_kernel": 4,
            "attention.kv_lora_rank": 512,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.446,
            "expert_gating_func": 2,
        },
    ),
}

_BIASED = _set(
    "attention bias", "output bias", "feed-forward bias", "no gate", "positions", "embedding norm"
)
_GATED = _set("embedding norm")


def _encoder(
    source: str,
    width: int,
    layers: int,
    heads: int,
    wide: int,
    vocabulary: int,
    context: int,
    architecture: str = "bert",
    traits: frozenset[str] = _BIASED,
    pooling: int = 2,
) -> ModelShape:
    return ModelShape(
        architecture,
        source,
        width,
        layers,
        vocabulary,
        context,
        feed_forward=wide,
        heads=heads,
        kv_heads=heads,
        is_tied=True,
        blocks=bert_blocks,
        traits=traits,
        quantization="F16",
        keys={"pooling_type": pooling, "attention.causal": False},
    )


ENCODERS: Final[dict[str, ModelShape]] = {
    "all-minilm-l6": _encoder(
        "sentence-transformers/all-MiniLM-L6-v2", 384, 6, 12, 1536, 30522, 512, pooling=1
    ),
    "bge-base": _encoder("BAAI/bge-base-en-v1.5", 768, 12, 12, 3072, 30522, 512),
    "bge-m3": _encoder("BAAI/bge-m3", 1024, 24, 16, 4096, 250_002, 8192),
    "nomic-embed-v1.5": _encoder(
        "nomic-ai/nomic-embed-text-v1.5", 768, 12, 12, 3072, 30528, 2048, "nomic-bert", _GATED, 1
    ),
    "jina-v2-base": _encoder(
        "jinaai/jina-embeddings-v2-base-en",
        768,
        12,
        12,
        3072,
        30528,
        8192,
        "jina-bert-v2",
        _set("embedding norm", "attention bias", "output bias", "down bias"),
        1,
    ),
}


def _t5(source: str, width: int, layers: int, heads: int, wide: int) -> ModelShape:
    return ModelShape(
        "t5",
        source,
        width,
        layers,
        32128,
        512,
        feed_forward=wide,
        heads=heads,
        kv_heads=heads,
        head=64,
        blocks=t5_blocks,
        traits=_set("embedding norm"),
        keys={"attention.relative_buckets_count": 32, "decoder_start_token_id": 0},
    )


PAIRS: Final[dict[str, ModelShape]] = {
    "flan-t5-base": _t5("google/flan-t5-base", 768, 12, 12, 2048),
    "flan-t5-xl": _t5("google/flan-t5-xl", 2048, 24, 32, 5120),
}
