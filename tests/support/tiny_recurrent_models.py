"""Writes recurrent and hybrid models with random weights, as ``tiny_models.py`` does others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from support.tiny_model import HEAD, HEADS, LAYERS, TOKENS, WIDTH, TinyModel

if TYPE_CHECKING:
    from pathlib import Path


def mamba(path: Path) -> None:
    """Recurrent: no cells at all."""
    inner, state, rank, kernel = 2 * WIDTH, 16, 8, 4
    model = TinyModel(path, "mamba")
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
    model = TinyModel(path, "lfm2")
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
    model.matrix("output", TOKENS, WIDTH, scale=4.0)
    model.write()


def qwen35(path: Path) -> None:
    """Hybrid, with positions of four numbers: a gated delta net, then attention with a gate."""
    heads, state, kernel = 2, 16, 4
    inner = heads * state
    model = TinyModel(path, "qwen35")
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
