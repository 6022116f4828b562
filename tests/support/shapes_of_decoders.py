"""Sizes of real dense models whose layers are all attention, as their configurations say.

``source`` is the repository on the Hugging Face hub whose config.json says so.
"""

from __future__ import annotations

from typing import Any, Final

from support.shape_tensors import (
    ModelShape,
    gemma3n_blocks,
)


def llama(
    source: str,
    width: int,
    layers: int,
    heads: int,
    kv: int,
    wide: int,
    vocabulary: int,
    context: int = 131_072,
    **more: object,
) -> ModelShape:
    """A shape whose fields are those of every configuration; ``more`` are other fields."""
    return ModelShape(
        str(more.pop("architecture", "llama")),
        source,
        width,
        layers,
        vocabulary,
        context,
        feed_forward=wide,
        heads=heads,
        kv_heads=kv,
        **more,  # type: ignore[arg-type] # fields of ModelShape by name
    )


def traits(*names: str) -> frozenset[str]:
    """What its tensors have that others have not (``shape_tensors.py``)."""
    return frozenset(names)


_QWEN2: Final[dict[str, Any]] = {"architecture": "qwen2", "traits": traits("attention bias")}
_QWEN3: Final[dict[str, Any]] = {"architecture": "qwen3", "norms": "head", "head": 128}
_PHI3: Final[dict[str, Any]] = {
    "architecture": "phi3",
    "traits": traits("fused attention", "fused gate"),
}
_STARCODER2: Final[dict[str, Any]] = {
    "architecture": "starcoder2",
    "traits": traits("attention bias", "output bias", "feed-forward bias", "norm bias", "no gate"),
}

DENSE: Final[dict[str, ModelShape]] = {
    "llama-2-7b": llama("meta-llama/Llama-2-7b-hf", 4096, 32, 32, 32, 11008, 32000, 4096),
    "llama-2-13b": llama("meta-llama/Llama-2-13b-hf", 5120, 40, 40, 40, 13824, 32000, 4096),
    "llama-2-70b": llama("meta-llama/Llama-2-70b-hf", 8192, 80, 64, 8, 28672, 32000, 4096),
    "llama-3.2-1b": llama("meta-llama/Llama-3.2-1B", 2048, 16, 32, 8, 8192, 128_256, is_tied=True),
    "llama-3.2-3b": llama("meta-llama/Llama-3.2-3B", 3072, 28, 24, 8, 8192, 128_256, is_tied=True),
    "llama-3.1-8b": llama("meta-llama/Llama-3.1-8B", 4096, 32, 32, 8, 14336, 128_256),
    "llama-3.1-70b": llama("meta-llama/Llama-3.1-70B", 8192, 80, 64, 8, 28672, 128_256),
    "llama-3.1-405b": llama("meta-llama/Llama-3.1-405B", 16384, 126, 128, 8, 53248, 128_256),
    "qwen2.5-0.5b": llama(
        "Qwen/Qwen2.5-0.5B", 896, 24, 14, 2, 4864, 151_936, 32768, is_tied=True, **_QWEN2
    ),
    "qwen2.5-7b": llama("Qwen/Qwen2.5-7B", 3584, 28, 28, 4, 18944, 152_064, **_QWEN2),
    "qwen2.5-72b": llama("Qwen/Qwen2.5-72B", 8192, 80, 64, 8, 29568, 152_064, **_QWEN2),
    "qwen3-0.6b": llama(
        "Qwen/Qwen3-0.6B", 1024, 28, 16, 8, 3072, 151_936, 40960, is_tied=True, **_QWEN3
    ),
    "qwen3-8b": llama("Qwen/Qwen3-8B", 4096, 36, 32, 8, 12288, 151_936, 40960, **_QWEN3),
    "qwen3-32b": llama("Qwen/Qwen3-32B", 5120, 64, 64, 8, 25600, 151_936, 40960, **_QWEN3),
    "mistral-7b-v0.1": llama(
        "mistralai/Mistral-7B-v0.1",
        4096,
        32,
        32,
        8,
        14336,
        32000,
        32768,
        keys={"attention.sliding_window": 4096},
    ),
    "mistral-nemo-12b": llama(
        "mistralai/Mistral-Nemo-Base-2407", 5120, 40, 32, 8, 14336, 131_072, head=128
    ),
    "mistral-small-24b": llama(
        "mistralai/Mistral-Small-24B-Base-2501", 5120, 40, 32, 8, 32768, 131_072, 32768, head=128
    ),
    "phi-3-mini": llama(
        "microsoft/Phi-3-mini-4k-instruct",
        3072,
        32,
        32,
        32,
        8192,
        32064,
        4096,
        keys={"attention.sliding_window": 2047},
        **_PHI3,
    ),
    "phi-4": llama("microsoft/phi-4", 5120, 40, 40, 10, 17920, 100_352, 16384, **_PHI3),
    "yi-34b": llama("01-ai/Yi-34B-200K", 7168, 60, 56, 8, 20480, 64000, 200_000),
    "falcon-7b": llama(
        "tiiuae/falcon-7b",
        4544,
        32,
        71,
        1,
        18176,
        65024,
        2048,
        architecture="falcon",
        traits=traits("fused attention", "no gate", "norm bias", "one norm"),
    ),
    "starcoder2-3b": llama(
        "bigcode/starcoder2-3b", 3072, 30, 24, 2, 12288, 49152, 16384, is_tied=True, **_STARCODER2
    ),
    "starcoder2-15b": llama(
        "bigcode/starcoder2-15b", 6144, 40, 48, 4, 24576, 49152, 16384, **_STARCODER2
    ),
    "olmo2-7b": llama(
        "allenai/OLMo-2-1124-7B",
        4096,
        32,
        32,
        32,
        11008,
        100_352,
        4096,
        architecture="olmo2",
        norms="all",
        traits=traits("no pre-norms", "post-norms"),
    ),
    "granite-3.3-8b": llama(
        "ibm-granite/granite-3.3-8b-base",
        4096,
        40,
        32,
        8,
        12800,
        49159,
        architecture="granite",
        is_tied=True,
        keys={"logit_scale": 16.0},
    ),
    "glm-4-9b": llama(
        "zai-org/GLM-4-9B-0414",
        4096,
        40,
        32,
        2,
        13696,
        151_552,
        32768,
        architecture="glm4",
        traits=traits("attention bias", "fused gate", "post-norms"),
    ),
    "command-r-35b": llama(
        "CohereLabs/c4ai-command-r-v01",
        8192,
        40,
        64,
        64,
        22528,
        256_000,
        is_tied=True,
        architecture="command-r",
        traits=traits("one norm"),
    ),
    "smollm2-135m": llama(
        "HuggingFaceTB/SmolLM2-135M", 576, 30, 9, 3, 1536, 49152, 8192, is_tied=True
    ),
    "minicpm-2b": llama(
        "openbmb/MiniCPM-2B-sft-bf16",
        2304,
        40,
        36,
        36,
        5760,
        122_753,
        4096,
        is_tied=True,
        architecture="minicpm",
    ),
    "internlm2-7b": llama(
        "internlm/internlm2-7b", 4096, 32, 32, 8, 14336, 92544, 32768, architecture="internlm2"
    ),
    "stablelm-2-1.6b": llama(
        "stabilityai/stablelm-2-1_6b",
        2048,
        24,
        32,
        32,
        5632,
        100_352,
        4096,
        architecture="stablelm",
        traits=traits("attention bias", "norm bias"),
    ),
}

_GEMMA2: Final[dict[str, Any]] = {
    "architecture": "gemma2",
    "is_tied": True,
    "traits": traits("post-norms"),
}
_GEMMA3: Final[dict[str, Any]] = {
    "architecture": "gemma3",
    "is_tied": True,
    "norms": "head",
    "traits": traits("post-norms"),
}
_GPT_OSS: Final[dict[str, Any]] = {
    "architecture": "gpt-oss",
    "head": 64,
    "quantization": "MXFP4",
    "experts_used": 4,
    "expert_width": 2880,
    "traits": traits(
        "attention bias", "output bias", "sinks", "expert bias", "attention post-norm"
    ),
    "keys": {"attention.sliding_window": 128},
}

SLIDING: Final[dict[str, ModelShape]] = {
    "gemma-2-2b": llama(
        "google/gemma-2-2b",
        2304,
        26,
        8,
        4,
        9216,
        256_000,
        8192,
        head=256,
        keys={"attention.sliding_window": 4096},
        **_GEMMA2,
    ),
    "gemma-2-27b": llama(
        "google/gemma-2-27b",
        4608,
        46,
        32,
        16,
        36864,
        256_000,
        8192,
        head=128,
        keys={"attention.sliding_window": 4096},
        **_GEMMA2,
    ),
    "gemma-3-1b": llama(
        "google/gemma-3-1b-it",
        1152,
        26,
        4,
        1,
        6912,
        262_144,
        32768,
        head=256,
        keys={"attention.sliding_window": 512},
        **_GEMMA3,
    ),
    "gemma-3-4b": llama(
        "google/gemma-3-4b-it",
        2560,
        34,
        8,
        4,
        10240,
        262_208,
        head=256,
        keys={"attention.sliding_window": 1024},
        **_GEMMA3,
    ),
    "gemma-3-27b": llama(
        "google/gemma-3-27b-it",
        5376,
        62,
        32,
        16,
        21504,
        262_208,
        head=128,
        keys={"attention.sliding_window": 1024},
        **_GEMMA3,
    ),
    "gemma-3n-e4b": llama(
        "google/gemma-3n-E4B-it",
        2048,
        35,
        8,
        2,
        16384,
        262_400,
        32768,
        head=256,
        norms="head",
        architecture="gemma3n",
        is_tied=True,
        blocks=gemma3n_blocks,
        traits=traits("post-norms"),
        keys={
            "attention.sliding_window": 512,
            "altup.num_inputs": 4,
            "embedding_length_per_layer_input": 256,
        },
    ),
    "command-r7b": llama(
        "CohereLabs/c4ai-command-r7b-12-2024",
        4096,
        32,
        32,
        8,
        14336,
        256_000,
        132_096,
        architecture="cohere2",
        is_tied=True,
        traits=traits("one norm"),
        keys={"attention.sliding_window": 4096, "logit_scale": 0.25},
    ),
    "gpt-oss-20b": llama(
        "openai/gpt-oss-20b", 2880, 24, 64, 8, 2880, 201_088, experts=32, **_GPT_OSS
    ),
    "gpt-oss-120b": llama(
        "openai/gpt-oss-120b", 2880, 36, 64, 8, 2880, 201_088, experts=128, **_GPT_OSS
    ),
}
