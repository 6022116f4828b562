"""What kind of model an architecture is, and which ones are not served, with the reason.

Owns: the names that the pinned llama.cpp knows (``src/llama-arch.cpp`` at 0c1e57098) and what each
can be used for; the pooling of embedding models. Does not own:
reading the header (``gguf_header``) or opening the model (``backend``). Pure. Next: ``facts``
before a model is fetched whole, ``backend.capabilities`` when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from terrace_runtime.models.metadata import names_of

ModelClass = Literal["decoder", "encoder", "encoder-decoder"]

POOLING: Final = ("none", "mean", "cls", "last", "rank")
"""By the number in the header (llama.cpp's llama_pooling_type)."""


_DECODERS: Final = names_of(
    """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom
    chameleon chatglm codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2
    deepseek2-ocr deepseek32 deepseek4 dots1 dots3note ernie4_5 ernie4_5-moe exaone exaone-moe
    exaone4 falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4 glm-dsa glm4 glm4moe glm5-next
    gpt-oss gpt2 gptneox granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe
    hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba kimi-k3
    kimi-linear laguna lfm2 lfm2moe llama llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm
    minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 mpt muse-glimmer nanbeige nemotron
    nemotron_h nemotron_h_moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3
    phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe
    qwen3next qwen3vl qwen3vlmoe qwen4exp refact rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker
    smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse
    """
)
_ENCODERS: Final = names_of(
    """
    bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert
    nomic-bert nomic-bert-moe t5encoder
    """
)
_ENCODERS_WITH_CELLS: Final = frozenset({"llama-embed", "t5encoder"})
"""llama.cpp opens a KV cache for them all the same (``llama_model::create_memory``)."""
_ENCODER_DECODERS: Final = frozenset({"t5"})
_DIFFUSION: Final = "a diffusion language model, and Terrace generates one token after the other"
_DRAFT_HEAD: Final = "a draft head, which works beside its target model alone"
_SPEECH: Final = "a speech model, and Terrace serves text"
_REFUSED: Final = {
    "clip": "a multimodal projector",
    "dflash": _DRAFT_HEAD,
    "dream": _DIFFUSION,
    "eagle3": _DRAFT_HEAD,
    "gemma4-assistant": _DRAFT_HEAD,
    "gptj": "named by this build of llama.cpp, which cannot run it",
    "llada": _DIFFUSION,
    "llada-moe": _DIFFUSION,
    "pockettts": _SPEECH,
    "qwen3tts": _SPEECH,
    "rnd1": _DIFFUSION,
    "wavtokenizer-dec": _SPEECH,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model can be used for."""

    model_class: ModelClass
    pooling: str
    """How token states become one embedding; empty: the model generates text."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model is not served; completes "the model is ...", hence without a full stop."""

    reason: str


def classify(architecture: str, *, is_causal: bool, pooling: int | None) -> Kind | Refusal:
    """The kind of a model by its header: attention.causal and pooling_type, None when absent."""
    if architecture in _REFUSED:
        return Refusal(f"{_REFUSED[architecture]} (architecture {architecture})")
    if architecture in _ENCODER_DECODERS:
        return Kind("encoder-decoder", "")
    is_encoder = architecture in _ENCODERS or not is_causal
    if not is_encoder and architecture not in _DECODERS:
        return Refusal(f"of the architecture {architecture!r}, which this build does not know")
    return _with_pooling(pooling or 0, is_encoder=is_encoder)


def _with_pooling(pooling: int, *, is_encoder: bool) -> Kind | Refusal:
    if not 0 <= pooling < len(POOLING):
        return Refusal(f"an embedding model with the unknown pooling type {pooling}")
    name = POOLING[pooling]
    if name == "rank":
        return Refusal("a reranker (pooling type rank), and Terrace serves text and embeddings")
    if is_encoder:
        return Kind("encoder", "mean" if name == "none" else name)
    return Kind("decoder", "" if name == "none" else name)


def has_cells(architecture: str) -> bool:
    """Whether llama.cpp opens a KV cache for its attention layers."""
    return architecture not in _ENCODERS or architecture in _ENCODERS_WITH_CELLS
