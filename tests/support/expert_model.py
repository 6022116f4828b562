"""Writes a small mixture-of-experts model of the llama architecture, random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

from support.tiny_model import byte_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEAD, FEED_FORWARD, EXPERTS = 256, 64, 512, 4
EXPERT_BYTES = 3 * EXPERTS * WIDTH * FEED_FORWARD * 2
"""Of one layer, in 16-bit floats."""


def expert_model(path: Path, layers: int) -> Path:
    """``layers`` layers, each with EXPERT_BYTES of routed experts of which two compute a token."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("experts")
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(WIDTH // HEAD)
    writer.add_head_count_kv(WIDTH // HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    num_tokens = byte_vocabulary(writer)
    numbers = np.random.default_rng(11)

    def matrix(name: str, *shape: int) -> None:
        weights = numbers.standard_normal(shape) * shape[-1] ** -0.5
        writer.add_tensor(f"{name}.weight", weights.astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    matrix("token_embd", num_tokens, WIDTH)
    norm("output_norm")
    matrix("output", num_tokens, WIDTH)
    for layer in range(layers):
        at = f"blk.{layer}."
        norm(f"{at}attn_norm")
        norm(f"{at}ffn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{at}{name}", WIDTH, WIDTH)
        matrix(f"{at}ffn_gate_inp", EXPERTS, WIDTH)
        matrix(f"{at}ffn_gate_exps", EXPERTS, FEED_FORWARD, WIDTH)
        matrix(f"{at}ffn_up_exps", EXPERTS, FEED_FORWARD, WIDTH)
        matrix(f"{at}ffn_down_exps", EXPERTS, WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
