"""Writes models of every class with random weights, each under a megabyte and read by llama.cpp.

Owns: the shapes and names that llama.cpp expects of each architecture (its src/models/*.cpp at
0c1e57098). What they say means nothing; that it changes with every token is what tests need.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import gguf

from support.tiny_model import (
    CONTEXT,
    FEED_FORWARD,
    HEAD,
    HEADS,
    LAYERS,
    TOKENS,
    WIDTH,
    WINDOW,
    TinyModel,
)
from support.tiny_recurrent_models import lfm2, mamba, qwen35

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def llama_like(
    path: Path,
    architecture: str,
    *,
    norms: bool = False,
    context: int = CONTEXT,
    marks: Sequence[str] = (),
) -> TinyModel:
    """A plain decoder without its end: who asks adds keys and writes."""
    model = TinyModel(path, architecture, context=context)
    model.writer.add_head_count_kv(1)
    model.writer.add_key_length(HEAD)
    model.writer.add_value_length(HEAD)
    model.writer.add_rope_dimension_count(HEAD)
    model.byte_vocabulary(marks)
    model.embeddings()
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        model.norm(f"{at}attn_norm")
        model.attention(at, norms=norms)
        model.norm(f"{at}ffn_norm")
        model.feed_forward(at)
    model.head()
    return model


def llama(path: Path, context: int = CONTEXT, marks: Sequence[str] = ()) -> None:
    """A plain decoder; ``marks`` are control tokens with these names."""
    llama_like(path, "llama", context=context, marks=marks).write()


def qwen3_embedding(path: Path) -> None:
    """A decoder whose last token's state is the embedding."""
    model = llama_like(path, "qwen3", norms=True)
    model.writer.add_pooling_type(gguf.PoolingType.LAST)
    model.write()


def qwen2vl(path: Path, marks: Sequence[str] = ()) -> None:
    """Positions of four numbers (M-RoPE), in neighbouring parts of each head."""
    _placed(path, "qwen2vl", marks).write()


def qwen3vl(path: Path, marks: Sequence[str] = (), deepstack: int = 1) -> None:
    """The same with the parts of a head taking turns; rows of images are wider by ``deepstack``."""
    model = _placed(path, "qwen3vl", marks, norms=True)
    model.number("n_deepstack_layers", deepstack)
    model.write()


def paddleocr(path: Path) -> None:
    """As ``qwen2vl``, by the name of PaddleOCR-VL."""
    _placed(path, "paddleocr", ()).write()


def _placed(
    path: Path, architecture: str, marks: Sequence[str], *, norms: bool = False
) -> TinyModel:
    model = llama_like(path, architecture, norms=norms, marks=marks)
    model.writer.add_rope_dimension_sections([4, 6, 6, 0])
    return model


def gemma3(path: Path) -> None:
    """Sliding windows, all layers but the last."""
    model = TinyModel(path, "gemma3")
    model.writer.add_head_count_kv(1)
    model.writer.add_key_length(HEAD)
    model.writer.add_value_length(HEAD)
    model.writer.add_sliding_window(WINDOW)
    model.number("attention.sliding_window_pattern", LAYERS)
    model.byte_vocabulary()
    model.embeddings()
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        model.norm(f"{at}attn_norm")
        model.attention(at, norms=True)
        model.norm(f"{at}post_attention_norm")
        model.norm(f"{at}ffn_norm")
        model.feed_forward(at)
        model.norm(f"{at}post_ffw_norm")
    model.head()
    model.write()


def bert(path: Path, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN) -> None:
    """An encoder over words of small letters."""
    model = TinyModel(path, "bert")
    writer = model.writer
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits + ".,!?"
    tokens += [f"▁{letter}" for letter in letters] + list(letters)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(tokens) - 5)
    )
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(0)
    model.embeddings(len(tokens))
    model.matrix("token_types", 2, WIDTH)
    model.matrix("position_embd", CONTEXT, WIDTH)
    _norm_and_bias(model, "token_embd_norm")
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        model.attention(at, kv_heads=HEADS)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.vector(f"{at}{name}.bias", WIDTH, 0.0, 0.1)
        _norm_and_bias(model, f"{at}attn_output_norm")
        model.matrix(f"{at}ffn_up", FEED_FORWARD, WIDTH)
        model.vector(f"{at}ffn_up.bias", FEED_FORWARD, 0.0, 0.1)
        model.matrix(f"{at}ffn_down", WIDTH, FEED_FORWARD)
        model.vector(f"{at}ffn_down.bias", WIDTH, 0.0, 0.1)
        _norm_and_bias(model, f"{at}layer_output_norm")
    model.write()


def _norm_and_bias(model: TinyModel, name: str) -> None:
    model.norm(name)
    model.vector(f"{name}.bias", WIDTH, 0.0, 0.1)


def t5(path: Path) -> None:
    """An encoder and a decoder that looks at its output."""
    model = TinyModel(path, "t5")
    writer = model.writer
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_relative_attn_buckets_count(32)
    writer.add_decoder_start_token_id(258)
    model.byte_vocabulary()
    model.embeddings()
    model.norm("enc.output_norm")
    model.norm("dec.output_norm")
    model.matrix("output", TOKENS, WIDTH, scale=4.0)
    for layer in range(LAYERS):
        for side in ("enc", "dec"):
            at = f"{side}.blk.{layer}."
            model.norm(f"{at}attn_norm")
            model.attention(at, kv_heads=HEADS)
            if layer == 0:
                model.matrix(f"{at}attn_rel_b", 32, HEADS)
            model.norm(f"{at}ffn_norm")
            model.feed_forward(at)
        model.norm(f"dec.blk.{layer}.cross_attn_norm")
        for name in ("q", "k", "v", "o"):
            model.matrix(f"dec.blk.{layer}.cross_attn_{name}", WIDTH, WIDTH)
    model.write()


MODELS: dict[str, Callable[[Any], None]] = {
    "llama": llama,
    "qwen2vl": qwen2vl,
    "qwen3vl": qwen3vl,
    "paddleocr": paddleocr,
    "mamba": mamba,
    "lfm2": lfm2,
    "qwen35": qwen35,
    "gemma3": gemma3,
    "bert": bert,
    "qwen3-embedding": qwen3_embedding,
    "t5": t5,
}
