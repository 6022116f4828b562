"""What kind of model an architecture is, and which ones are not served, with the reason.

Owns: the names that the pinned llama.cpp knows (``src/llama-arch.cpp`` at 0c1e57098) and what each
can be used for; the pooling of embedding models; the size of a recurrent state. Does not own:
reading the header (``gguf_header``) or opening the model (``backend``). Pure. Next: ``facts``
before a model is fetched whole, ``backend.capabilities`` when it is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from terrace_runtime.models.metadata import invalid_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.models.metadata import Keys

ModelClass = Literal["decoder", "encoder", "encoder-decoder"]

POOLING: Final = ("none", "mean", "cls", "last", "rank")
"""By the number in the header (llama.cpp's llama_pooling_type)."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DECODERS: Final = _names(
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
_ENCODERS: Final = _names(
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
_RECURRENT: Final = _names(
    """
    arwkv7 bailingmoe3 deepseek4 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2
    lfm2moe mamba mamba2 minimax-01 nemotron_h nemotron_h_moe plamo2 qwen35 qwen35moe qwen3next
    qwen4exp rwkv6 rwkv6qwen2 rwkv7
    """
)
"""Architectures with a recurrent state, alone or beside attention (llm_arch_is_recurrent and
llm_arch_is_hybrid)."""
_STATEFUL_LAYER = re.compile(r"^blk\.(\d{1,4})\.(ssm_|time_mix_|shortconv)")
MAX_STATE_BYTES: Final = 2**50
_FLOAT = 4


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


def recurrent_bytes(keys: Keys, tensor_names: Iterable[str]) -> int:
    """Bytes of one sequence's recurrent state, whatever its length; 0: the model has none.

    Per layer llama.cpp keeps n_embd_r + n_embd_s values of f32 (``llama_hparams``).
    """
    if keys.architecture not in _RECURRENT:
        return 0
    matches = map(_STATEFUL_LAYER.match, tensor_names)
    layers = len({match[1] for match in matches if match is not None})
    # A layer whose tensors have names that we do not know counts: too large, never too small.
    size = _FLOAT * _state_values(keys) * (layers or keys.positive("block_count"))
    if size > MAX_STATE_BYTES:
        invalid_model(f"its recurrent state would take {size} bytes per sequence")
    return size


def _state_values(keys: Keys) -> int:
    """n_embd_r + n_embd_s of llama.cpp."""
    width = keys.positive("embedding_length")
    if head := keys.number("wkv.head_size", 0):
        return keys.number("token_shift_count", 2) * width + width * head
    if cache := keys.number("shortconv.l_cache", 0):
        return width * max(0, cache - 1)
    heads = max(keys.per_layer("attention.head_count", 1, 0))
    kernel, state = keys.number("ssm.conv_kernel", 0), keys.number("ssm.state_size", 0)
    if head := keys.number("kda.head_dim", 0):
        return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
    if keys.architecture == "minimax-01":
        head = keys.number("attention.key_length", width // max(1, heads))
        return head * head * heads
    inner = keys.number("ssm.inner_size", 0)
    convolved = inner + 2 * keys.number("ssm.group_count", 0) * state
    return max(0, kernel - 1) * convolved + state * inner
