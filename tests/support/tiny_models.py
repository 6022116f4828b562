"""Writes models of every class with random weights, each under a megabyte and read by llama.cpp.

Owns: the shapes and names that llama.cpp expects of each architecture (its src/models/*.cpp at
0c1e57098). What they say means nothing; that it changes with every token is what tests need.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WIDTH, HEADS, HEAD, FEED_FORWARD, LAYERS = 64, 2, 32, 128, 2
CONTEXT = 1024
WINDOW = 64
_TOKENS = 320


class _Model:
    """One GGUF in the making; every matrix is drawn from the same seed."""

    def __init__(self, path: Path, architecture: str, *, context: int = CONTEXT) -> None:
        self.writer = gguf.GGUFWriter(path, architecture)
        self._numbers = np.random.default_rng(7)
        self._architecture = architecture
        writer = self.writer
        writer.add_name(f"tiny {architecture}")
        writer.add_context_length(context)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(HEADS)
        writer.add_layer_norm_rms_eps(1e-5)

    def number(self, key: str, value: float) -> None:
        """An architecture's own key."""
        add = self.writer.add_uint32 if isinstance(value, int) else self.writer.add_float32
        add(f"{self._architecture}.{key}", value)

    def matrix(self, name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        weights = self._numbers.standard_normal((rows, columns)) * scale * columns**-0.5
        self.writer.add_tensor(f"{name}.weight", weights.astype(np.float32))

    def vector(self, name: str, size: int, value: float = 1.0, spread: float = 0.0) -> None:
        numbers = value + spread * self._numbers.standard_normal(size)
        self.writer.add_tensor(name, numbers.astype(np.float32))

    def norm(self, name: str, size: int = WIDTH) -> None:
        self.vector(f"{name}.weight", size)

    def embeddings(self, rows: int = _TOKENS) -> None:
        self.matrix("token_embd", rows, WIDTH, scale=WIDTH**0.5)

    def head(self) -> None:
        self.norm("output_norm")
        self.matrix("output", _TOKENS, WIDTH, scale=4.0)

    def attention(self, at: str, kv_heads: int = 1, *, norms: bool = False) -> None:
        self.matrix(f"{at}attn_q", HEADS * HEAD, WIDTH)
        self.matrix(f"{at}attn_k", kv_heads * HEAD, WIDTH)
        self.matrix(f"{at}attn_v", kv_heads * HEAD, WIDTH)
        self.matrix(f"{at}attn_output" if at.startswith("blk.") else f"{at}attn_o", WIDTH, WIDTH)
        if norms:
            self.norm(f"{at}attn_q_norm", HEAD)
            self.norm(f"{at}attn_k_norm", HEAD)

    def feed_forward(self, at: str) -> None:
        self.matrix(f"{at}ffn_gate", FEED_FORWARD, WIDTH)
        self.matrix(f"{at}ffn_up", FEED_FORWARD, WIDTH)
        self.matrix(f"{at}ffn_down", WIDTH, FEED_FORWARD)

    def byte_vocabulary(self, marks: Sequence[str] = ()) -> None:
        """One token per byte and control tokens behind them."""
        byte_vocabulary(self.writer, marks)

    def write(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def byte_vocabulary(writer: gguf.GGUFWriter, marks: Sequence[str] = ()) -> int:
    """One token per byte, then control tokens, the last ones ``marks``; merges join nothing.

    Returns their count.
    """
    tokens = _byte_alphabet()
    tokens += [f"<|control_{i}|>" for i in range(_TOKENS - len(tokens) - len(marks))] + [*marks]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([normal] * 256 + [control] * (_TOKENS - 256))
    writer.add_token_merges(["q q"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    return _TOKENS


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        stand_ins.setdefault(byte, chr(256 + len(stand_ins) - len(printable)))
    return [stand_ins[byte] for byte in range(256)]


def llama_like(
    path: Path,
    architecture: str,
    *,
    norms: bool = False,
    context: int = CONTEXT,
    marks: Sequence[str] = (),
) -> _Model:
    """A plain decoder without its end: who asks adds keys and writes."""
    model = _Model(path, architecture, context=context)
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


def _placed(path: Path, architecture: str, marks: Sequence[str], *, norms: bool = False) -> _Model:
    model = llama_like(path, architecture, norms=norms, marks=marks)
    model.writer.add_rope_dimension_sections([4, 6, 6, 0])
    return model


def gemma3(path: Path) -> None:
    """Sliding windows, all layers but the last."""
    model = _Model(path, "gemma3")
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


def mamba(path: Path) -> None:
    """Recurrent: no cells at all."""
    inner, state, rank, kernel = 2 * WIDTH, 16, 8, 4
    model = _Model(path, "mamba")
    model.writer.add_ssm_conv_kernel(kernel)
    model.writer.add_ssm_inner_size(inner)
    model.writer.add_ssm_state_size(state)
    model.writer.add_ssm_time_step_rank(rank)
    model.byte_vocabulary()
    model.embeddings()
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        model.norm(f"{at}attn_norm")
        model.matrix(f"{at}ssm_in", 2 * inner, WIDTH)
        model.matrix(f"{at}ssm_conv1d", inner, kernel)
        model.vector(f"{at}ssm_conv1d.bias", inner, 0.0, 0.1)
        model.matrix(f"{at}ssm_x", rank + 2 * state, inner)
        model.matrix(f"{at}ssm_dt", inner, rank)
        model.vector(f"{at}ssm_dt.bias", inner, -2.0, 0.1)
        rates = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)) / state
        model.writer.add_tensor(f"{at}ssm_a", rates)
        model.vector(f"{at}ssm_d", inner)
        model.matrix(f"{at}ssm_out", WIDTH, inner)
    model.head()
    model.write()


def lfm2(path: Path) -> None:
    """Hybrid: a short convolution, then attention."""
    model = _Model(path, "lfm2")
    model.writer.add_head_count_kv([0, 1])
    model.writer.add_shortconv_l_cache(3)
    model.byte_vocabulary()
    model.embeddings()
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        model.norm(f"{at}attn_norm")
        if layer == 0:
            model.matrix(f"{at}shortconv.conv", WIDTH, 3)
            model.matrix(f"{at}shortconv.in_proj", 3 * WIDTH, WIDTH)
            model.matrix(f"{at}shortconv.out_proj", WIDTH, WIDTH)
        else:
            model.attention(at, norms=True)
        model.norm(f"{at}ffn_norm")
        model.feed_forward(at)
    model.norm("token_embd_norm")
    model.matrix("output", _TOKENS, WIDTH, scale=4.0)
    model.write()


def qwen35(path: Path) -> None:
    """Hybrid, with positions of four numbers: a gated delta net, then attention with a gate."""
    heads, state, kernel = 2, 16, 4
    inner = heads * state
    model = _Model(path, "qwen35")
    model.writer.add_head_count_kv(1)
    model.writer.add_key_length(HEAD)
    model.writer.add_value_length(HEAD)
    model.writer.add_rope_dimension_count(HEAD)
    model.writer.add_rope_dimension_sections([4, 6, 6, 0])
    model.writer.add_ssm_conv_kernel(kernel)
    model.writer.add_ssm_inner_size(inner)
    model.writer.add_ssm_state_size(state)
    model.writer.add_ssm_time_step_rank(heads)
    model.writer.add_ssm_group_count(heads)
    model.number("full_attention_interval", LAYERS)
    model.byte_vocabulary()
    model.embeddings()
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        model.norm(f"{at}attn_norm")
        model.norm(f"{at}post_attention_norm")
        if layer == 0:
            model.matrix(f"{at}attn_qkv", 3 * inner, WIDTH)
            model.matrix(f"{at}attn_gate", inner, WIDTH)
            model.matrix(f"{at}ssm_conv1d", 3 * inner, kernel)
            model.vector(f"{at}ssm_dt.bias", heads, -2.0, 0.1)
            model.vector(f"{at}ssm_a", heads, -1.0, 0.1)
            model.matrix(f"{at}ssm_beta", heads, WIDTH)
            model.matrix(f"{at}ssm_alpha", heads, WIDTH)
            model.norm(f"{at}ssm_norm", state)
            model.matrix(f"{at}ssm_out", WIDTH, inner)
        else:
            model.matrix(f"{at}attn_q", 2 * HEADS * HEAD, WIDTH)
            model.matrix(f"{at}attn_k", HEAD, WIDTH)
            model.matrix(f"{at}attn_v", HEAD, WIDTH)
            model.matrix(f"{at}attn_output", WIDTH, HEADS * HEAD)
            model.norm(f"{at}attn_q_norm", HEAD)
            model.norm(f"{at}attn_k_norm", HEAD)
        model.feed_forward(at)
    model.head()
    model.write()


def bert(path: Path, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN) -> None:
    """An encoder over words of small letters."""
    model = _Model(path, "bert")
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


def _norm_and_bias(model: _Model, name: str) -> None:
    model.norm(name)
    model.vector(f"{name}.bias", WIDTH, 0.0, 0.1)


def t5(path: Path) -> None:
    """An encoder and a decoder that looks at its output."""
    model = _Model(path, "t5")
    writer = model.writer
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_relative_attn_buckets_count(32)
    writer.add_decoder_start_token_id(258)
    model.byte_vocabulary()
    model.embeddings()
    model.norm("enc.output_norm")
    model.norm("dec.output_norm")
    model.matrix("output", _TOKENS, WIDTH, scale=4.0)
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
