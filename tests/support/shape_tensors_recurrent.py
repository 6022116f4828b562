"""The tensors of architectures with recurrent layers, and of encoders (llama.cpp 0c1e57098).

Owns: names and shapes by block, beside the plain ones of ``shape_tensors.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.shape_tensors import (
    ModelShape,
    Tensor,
    attention,
    experts,
    feed_forward,
    latent_attention,
    norms_of,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def mamba(shape: ModelShape, at: str) -> Iterator[Tensor]:
    """One layer of Mamba 1; Jamba's has norms inside."""
    inner, state = shape.keys["ssm.inner_size"], shape.keys["ssm.state_size"]
    rank, kernel = shape.keys["ssm.time_step_rank"], shape.keys["ssm.conv_kernel"]
    yield Tensor(f"{at}ssm_in.weight", (shape.width, 2 * inner))
    yield plain(f"{at}ssm_conv1d.weight", kernel, inner)
    yield plain(f"{at}ssm_conv1d.bias", inner)
    yield Tensor(f"{at}ssm_x.weight", (inner, rank + 2 * state))
    yield Tensor(f"{at}ssm_dt.weight", (rank, inner))
    yield plain(f"{at}ssm_dt.bias", inner)
    yield plain(f"{at}ssm_a", state, inner)
    yield plain(f"{at}ssm_d", inner)
    yield Tensor(f"{at}ssm_out.weight", (inner, shape.width))
    if shape.architecture == "jamba":
        yield plain(f"{at}ssm_dt_norm.weight", rank)
        yield plain(f"{at}ssm_b_norm.weight", state)
        yield plain(f"{at}ssm_c_norm.weight", state)


def mamba2(shape: ModelShape, at: str) -> Iterator[Tensor]:
    """One layer of Mamba 2."""
    inner, state = shape.keys["ssm.inner_size"], shape.keys["ssm.state_size"]
    heads, kernel = shape.keys["ssm.time_step_rank"], shape.keys["ssm.conv_kernel"]
    groups = shape.keys["ssm.group_count"]
    convolved = inner + 2 * groups * state
    yield Tensor(f"{at}ssm_in.weight", (shape.width, inner + convolved + heads))
    yield plain(f"{at}ssm_conv1d.weight", kernel, convolved)
    yield plain(f"{at}ssm_conv1d.bias", convolved)
    yield plain(f"{at}ssm_dt.bias", heads)
    yield plain(f"{at}ssm_a", 1, heads)
    yield plain(f"{at}ssm_d", 1, heads)
    yield plain(f"{at}ssm_norm.weight", inner // groups, groups)
    yield Tensor(f"{at}ssm_out.weight", (inner, shape.width))


def mamba_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Mamba 1 and 2: nothing but recurrent layers."""
    block = mamba2 if shape.architecture == "mamba2" else mamba
    for layer in range(shape.layers):
        yield plain(f"blk.{layer}.attn_norm.weight", shape.width)
        yield from block(shape, f"blk.{layer}.")


def rwkv7_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """RWKV 7: time mixing and channel mixing."""
    width, wide = shape.width, shape.feed_forward_of(0)
    decay, rate = shape.keys["attention.decay_lora_rank"], shape.keys["attention.iclr_lora_rank"]
    residual = shape.keys["attention.value_residual_mix_lora_rank"]
    gate = shape.keys["attention.gate_lora_rank"]
    yield plain("token_embd_norm.weight", width)
    yield plain("token_embd_norm.bias", width)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            yield plain(f"{at}{name}.weight", width)
            yield plain(f"{at}{name}.bias", width)
        ranks = {"w": decay, "a": rate, "v": residual if layer else rate}
        for name, rank in ranks.items():
            yield plain(f"{at}time_mix_{name}0.weight", width)
            yield plain(f"{at}time_mix_{name}1.weight", width, rank)
            yield plain(f"{at}time_mix_{name}2.weight", rank, width)
        yield plain(f"{at}time_mix_g1.weight", width, gate)
        yield plain(f"{at}time_mix_g2.weight", gate, width)
        yield plain(f"{at}time_mix_lerp_fused.weight", width, 1, 1, 6)
        for name in ("k_k", "k_a", "r_k"):
            yield plain(f"{at}time_mix_{name}.weight", width)
        for name in ("key", "value", "receptance", "output"):
            yield Tensor(f"{at}time_mix_{name}.weight", (width, width))
        yield plain(f"{at}channel_mix_lerp_k.weight", width, 1, 1)
        yield Tensor(f"{at}channel_mix_key.weight", (width, wide))
        yield Tensor(f"{at}channel_mix_value.weight", (wide, width))


def jamba_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Jamba: attention in every eighth layer, experts in every second."""
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        yield from (attention if shape.kv_heads_of(layer) else mamba_of)(shape, at, layer)
        if layer % 2:
            yield from experts(shape, at)
        else:
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def mamba_of(shape: ModelShape, at: str, _layer: int) -> Iterator[Tensor]:
    return mamba(shape, at)


def lfm2_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """LFM2: short convolutions, attention in some layers."""
    width = shape.width
    yield plain("token_embd_norm.weight", width)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        if shape.kv_heads_of(layer):
            yield from attention(shape, at, layer)
        else:
            yield plain(f"{at}shortconv.conv.weight", shape.keys["shortconv.l_cache"], width)
            yield Tensor(f"{at}shortconv.in_proj.weight", (width, 3 * width))
            yield Tensor(f"{at}shortconv.out_proj.weight", (width, width))
        yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def falcon_h1_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Falcon H1: attention and Mamba 2 side by side in every layer."""
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield plain(f"{at}attn_norm.weight", shape.width)
        yield plain(f"{at}ffn_norm", shape.width)
        yield from attention(shape, at, layer)
        yield from mamba2(shape, at)
        yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def nemotron_h_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Nemotron H: each layer is one of Mamba 2, attention and feed-forward."""
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield plain(f"{at}attn_norm.weight", shape.width)
        if shape.feed_forward_of(layer):
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))
        elif shape.kv_heads_of(layer):
            yield from attention(shape, at, layer)
        else:
            yield from mamba2(shape, at)


def granite_hybrid_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Granite 4 H: Mamba 2 or attention, then experts or a feed-forward block."""
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        if shape.kv_heads_of(layer):
            yield from attention(shape, at, layer)
        else:
            yield from mamba2(shape, at)
        if shape.experts:
            yield from experts(shape, at)
        else:
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def qwen3next_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Qwen3 Next: gated delta nets, gated attention in every fourth layer, experts."""
    width, state = shape.width, shape.keys["ssm.state_size"]
    heads, kernel = shape.keys["ssm.time_step_rank"], shape.keys["ssm.conv_kernel"]
    key, value = state * shape.keys["ssm.group_count"], state * heads
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        if (layer + 1) % 4 == 0:
            yield from attention(shape, at, layer, query_factor=2)
        else:
            yield Tensor(f"{at}attn_qkv.weight", (width, 2 * key + value))
            yield Tensor(f"{at}attn_gate.weight", (width, value))
            yield plain(f"{at}ssm_conv1d.weight", kernel, 2 * key + value)
            yield plain(f"{at}ssm_dt.bias", heads)
            yield plain(f"{at}ssm_a", heads)
            yield Tensor(f"{at}ssm_ba.weight", (width, 2 * heads))
            yield plain(f"{at}ssm_norm.weight", state)
            yield Tensor(f"{at}ssm_out.weight", (value, width))
        yield from experts(shape, at)


def kimi_linear_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Kimi Linear: delta attention, latent attention in some layers, experts."""
    width, heads, head = shape.width, shape.heads_of(0), shape.keys["kda.head_dim"]
    kernel, across = shape.keys["ssm.conv_kernel"], heads * head
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        if shape.kv_heads_of(layer):
            yield from latent_attention(shape, at)
        else:
            for name in ("q", "k", "v"):
                yield plain(f"{at}ssm_conv1d_{name}.weight", kernel, 1, across)
                yield Tensor(f"{at}attn_{name}.weight", (width, across))
            yield Tensor(f"{at}ssm_f_a.weight", (width, head))
            yield Tensor(f"{at}ssm_f_b.weight", (head, across))
            yield Tensor(f"{at}ssm_beta.weight", (width, heads))
            yield plain(f"{at}ssm_a", 1, heads)
            yield plain(f"{at}ssm_dt.bias", across)
            yield Tensor(f"{at}ssm_g_a.weight", (width, head))
            yield Tensor(f"{at}ssm_g_b.weight", (head, across))
            yield plain(f"{at}ssm_norm.weight", head)
            yield Tensor(f"{at}attn_output.weight", (across, width))
        if layer >= shape.dense_layers:
            yield from experts(shape, at)
        else:
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def bert_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """BERT, Nomic's and Jina's: positions and biases as each has them."""
    width = shape.width
    yield plain("token_types.weight", width, 2)
    if "positions" in shape.traits:
        yield plain("position_embd.weight", width, shape.context)
    yield plain("token_embd_norm.weight", width)
    yield plain("token_embd_norm.bias", width)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from attention(shape, at, layer)
        for name in ("attn_output_norm", "layer_output_norm"):
            yield plain(f"{at}{name}.weight", width)
            yield plain(f"{at}{name}.bias", width)
        yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def t5_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """T5: an encoder, and a decoder that looks at it."""
    width, across = shape.width, shape.heads_of(0) * shape.head_length
    buckets = shape.keys["attention.relative_buckets_count"]
    yield plain("enc.output_norm.weight", width)
    yield plain("dec.output_norm.weight", width)
    for layer in range(shape.layers):
        for side, kinds in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
            at = f"{side}.blk.{layer}."
            for kind in kinds:
                yield plain(f"{at}{kind}_norm.weight", width)
                for name in ("q", "k", "v"):
                    yield Tensor(f"{at}{kind}_{name}.weight", (width, across))
                yield Tensor(f"{at}{kind}_o.weight", (across, width))
            if layer == 0:
                yield plain(f"{at}attn_rel_b.weight", shape.heads_of(0), buckets)
            yield plain(f"{at}ffn_norm.weight", width)
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))
