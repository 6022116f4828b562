"""The tensors of each architecture, as llama.cpp asks for them (src/models/*.cpp at 0c1e57098).

Owns: names and shapes by block. Does not own: the sizes of real models (``shapes_of_*.py``) or
writing files (``model_shapes.py``). Shapes are in GGUF's order: columns first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Tensor(NamedTuple):
    """A matrix that a quantisation packs, or (``is_plain``) numbers that stay f32."""

    name: str
    shape: tuple[int, ...]
    is_plain: bool = False


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a real model, as its configuration publishes them."""

    architecture: str
    source: str
    """Where its configuration is published."""
    width: int
    layers: int
    vocabulary: int
    context: int
    feed_forward: int | tuple[int, ...] = 0
    heads: int | tuple[int, ...] = 0
    kv_heads: int | tuple[int, ...] = 0
    head: int = 0
    """Values of a head; 0: width / heads."""
    is_tied: bool = False
    """The output head is the token embedding."""
    norms: str = ""
    """Of queries and keys: ``head`` (each), ``all`` (together) or none."""
    traits: frozenset[str] = frozenset()
    """What blocks have or lack, see ``_Block``."""
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0
    shared_width: int = 0
    dense_layers: int = 0
    """First layers without experts."""
    keys: dict[str, Any] = field(default_factory=dict)
    """Further metadata, without the architecture's prefix."""
    blocks: Callable[[ModelShape], Iterator[Tensor]] | None = None
    """Tensors of all blocks where they are unlike plain ones."""
    quantization: str = "Q4_K_M"

    @property
    def head_length(self) -> int:
        return self.head or self.width // max(1, self.heads_of(0))

    def heads_of(self, layer: int) -> int:
        return self.heads[layer] if isinstance(self.heads, tuple) else self.heads

    def kv_heads_of(self, layer: int) -> int:
        return self.kv_heads[layer] if isinstance(self.kv_heads, tuple) else self.kv_heads

    def feed_forward_of(self, layer: int) -> int:
        given = self.feed_forward
        return given[layer] if isinstance(given, tuple) else given


def all_tensors(shape: ModelShape) -> Iterator[Tensor]:
    """Every tensor of the model's file, in an order that llama.cpp takes."""
    yield Tensor("token_embd.weight", (shape.width, shape.vocabulary))
    if not shape.is_tied:
        yield Tensor("output.weight", (shape.width, shape.vocabulary))
    if "embedding norm" not in shape.traits:
        yield plain("output_norm.weight", shape.width)
    if "norm bias" in shape.traits:
        yield plain("output_norm.bias", shape.width)
    blocks = shape.blocks or decoder_blocks
    yield from blocks(shape)


def plain(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, is_plain=True)


def decoder_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Attention and a feed-forward block, or experts, in every layer."""
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        yield from attention(shape, at, layer)
        if shape.experts and layer >= shape.dense_layers:
            yield from experts(shape, at)
        else:
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def norms_of(shape: ModelShape, at: str) -> Iterator[Tensor]:
    names = [] if "no pre-norms" in shape.traits else ["attn_norm", "ffn_norm"]
    if "one norm" in shape.traits:
        names = ["attn_norm"]
    if "post-norms" in shape.traits:
        names += ["post_attention_norm", "post_ffw_norm"]
    if "attention post-norm" in shape.traits:
        names = ["attn_norm", "post_attention_norm"]
    for name in names:
        yield plain(f"{at}{name}.weight", shape.width)
        if "norm bias" in shape.traits:
            yield plain(f"{at}{name}.bias", shape.width)


def attention(
    shape: ModelShape, at: str, layer: int = 0, query_factor: int = 1
) -> Iterator[Tensor]:
    across = shape.heads_of(layer) * shape.head_length
    keys = shape.kv_heads_of(layer) * shape.head_length
    parts = {"attn_q": across * query_factor, "attn_k": keys, "attn_v": keys}
    if "fused attention" in shape.traits:
        parts = {"attn_qkv": across + 2 * keys}
    for name, rows in parts.items():
        yield Tensor(f"{at}{name}.weight", (shape.width, rows))
        if "attention bias" in shape.traits:
            yield plain(f"{at}{name}.bias", rows)
    yield Tensor(f"{at}attn_output.weight", (across, shape.width))
    if "output bias" in shape.traits:
        yield plain(f"{at}attn_output.bias", shape.width)
    if shape.norms:
        is_each = shape.norms == "head"
        yield plain(f"{at}attn_q_norm.weight", shape.head_length if is_each else across)
        yield plain(f"{at}attn_k_norm.weight", shape.head_length if is_each else keys)
    if "sinks" in shape.traits:
        yield plain(f"{at}attn_sinks.weight", shape.heads_of(layer))


def feed_forward(shape: ModelShape, at: str, wide: int) -> Iterator[Tensor]:
    rows = 2 * wide if "fused gate" in shape.traits else wide
    if not shape.traits & {"fused gate", "no gate"}:
        yield Tensor(f"{at}ffn_gate.weight", (shape.width, wide))
    yield Tensor(f"{at}ffn_up.weight", (shape.width, rows))
    yield Tensor(f"{at}ffn_down.weight", (wide, shape.width))
    if "feed-forward bias" in shape.traits:
        yield plain(f"{at}ffn_up.bias", rows)
    if shape.traits & {"feed-forward bias", "down bias"}:
        yield plain(f"{at}ffn_down.bias", shape.width)


def experts(shape: ModelShape, at: str) -> Iterator[Tensor]:
    count, wide = shape.experts, shape.expert_width
    yield plain(f"{at}ffn_gate_inp.weight", shape.width, count)
    yield Tensor(f"{at}ffn_gate_exps.weight", (shape.width, wide, count))
    yield Tensor(f"{at}ffn_up_exps.weight", (shape.width, wide, count))
    yield Tensor(f"{at}ffn_down_exps.weight", (wide, shape.width, count))
    if "expert bias" in shape.traits:
        yield plain(f"{at}ffn_gate_inp.bias", count)
        yield plain(f"{at}ffn_gate_exps.bias", wide, count)
        yield plain(f"{at}ffn_up_exps.bias", wide, count)
        yield plain(f"{at}ffn_down_exps.bias", shape.width, count)
    if "score bias" in shape.traits:
        yield plain(f"{at}exp_probs_b.bias", count)
    if shape.shared_width:
        if "gated share" in shape.traits:
            yield plain(f"{at}ffn_gate_inp_shexp.weight", shape.width)
        yield Tensor(f"{at}ffn_gate_shexp.weight", (shape.width, shape.shared_width))
        yield Tensor(f"{at}ffn_up_shexp.weight", (shape.width, shape.shared_width))
        yield Tensor(f"{at}ffn_down_shexp.weight", (shape.shared_width, shape.width))


def latent_attention(shape: ModelShape, at: str) -> Iterator[Tensor]:
    """Of DeepSeek: keys and values through one compressed row per token."""
    heads, rank = shape.heads_of(0), shape.keys["attention.kv_lora_rank"]
    rope, key = shape.keys["rope.dimension_count"], shape.keys["attention.key_length_mla"]
    value = shape.keys["attention.value_length_mla"]
    queries = shape.keys.get("attention.q_lora_rank", 0)
    if queries:
        yield plain(f"{at}attn_q_a_norm.weight", queries)
        yield Tensor(f"{at}attn_q_a.weight", (shape.width, queries))
        yield Tensor(f"{at}attn_q_b.weight", (queries, heads * key))
    else:
        yield Tensor(f"{at}attn_q.weight", (shape.width, heads * key))
    yield plain(f"{at}attn_kv_a_norm.weight", rank)
    yield Tensor(f"{at}attn_kv_a_mqa.weight", (shape.width, rank + rope))
    yield Tensor(f"{at}attn_k_b.weight", (key - rope, rank, heads))
    yield Tensor(f"{at}attn_v_b.weight", (rank, value, heads))
    yield Tensor(f"{at}attn_output.weight", (heads * value, shape.width))


def latent_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """DeepSeek V2 and V3."""
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield from norms_of(shape, at)
        yield from latent_attention(shape, at)
        if layer >= shape.dense_layers:
            yield from experts(shape, at)
        else:
            yield from feed_forward(shape, at, shape.feed_forward_of(layer))


def glm4_moe_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """GLM 4.5: its last layer only drafts."""
    yield from decoder_blocks(shape)
    at = f"blk.{shape.layers - 1}.nextn."
    yield Tensor(f"{at}eh_proj.weight", (2 * shape.width, shape.width))
    for name in ("enorm", "hnorm", "shared_head_norm"):
        yield plain(f"{at}{name}.weight", shape.width)


def gemma3n_blocks(shape: ModelShape) -> Iterator[Tensor]:
    """Gemma 3n: four streams, an input of its own per layer, low-rank residuals."""
    width, streams = shape.width, shape.keys["altup.num_inputs"]
    own, rank = shape.keys["embedding_length_per_layer_input"], 64
    yield Tensor("altup_proj.weight", (width, width, streams - 1))
    yield Tensor("altup_unembd_proj.weight", (width, width, streams - 1))
    yield Tensor("per_layer_token_embd.weight", (own * shape.layers, shape.vocabulary))
    yield Tensor("per_layer_model_proj.weight", (width, own * shape.layers))
    yield plain("per_layer_proj_norm.weight", own)
    yield from decoder_blocks(shape)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield Tensor(f"{at}inp_gate.weight", (width, own))
        yield Tensor(f"{at}proj.weight", (own, width))
        yield plain(f"{at}post_norm.weight", width)
        yield plain(f"{at}altup_correct_coef.weight", streams, streams)
        yield plain(f"{at}altup_correct_scale.weight", width)
        yield plain(f"{at}altup_predict_coef.weight", streams, streams * streams)
        yield plain(f"{at}altup_router.weight", width, streams)
        yield plain(f"{at}altup_router_norm.weight", width)
        yield Tensor(f"{at}laurel_l.weight", (width, rank))
        yield Tensor(f"{at}laurel_r.weight", (rank, width))
        yield plain(f"{at}laurel_post_norm.weight", width)
