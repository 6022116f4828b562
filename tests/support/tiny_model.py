"""One model in the making, with random weights: what all tiny models share.

Owns: names of tensors and keys as llama.cpp expects them, and a vocabulary of bytes. Next:
``tiny_models.py`` and ``tiny_recurrent_models.py`` put whole models together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTH, HEADS, HEAD, FEED_FORWARD, LAYERS = 64, 2, 32, 128, 2
CONTEXT = 1024
WINDOW = 64
TOKENS = 320


class TinyModel:
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

    def embeddings(self, rows: int = TOKENS) -> None:
        self.matrix("token_embd", rows, WIDTH, scale=WIDTH**0.5)

    def head(self) -> None:
        self.norm("output_norm")
        self.matrix("output", TOKENS, WIDTH, scale=4.0)

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
    tokens += [f"<|control_{i}|>" for i in range(TOKENS - len(tokens) - len(marks))] + [*marks]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([normal] * 256 + [control] * (TOKENS - 256))
    writer.add_token_merges(["q q"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    return TOKENS


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        stand_ins.setdefault(byte, chr(256 + len(stand_ins) - len(printable)))
    return [stand_ins[byte] for byte in range(256)]
