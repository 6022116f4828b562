"""Values per token inside a model's layers, by its keys and tensors.

Owns: what ``Widths`` means for each architecture. Does not own: how large a graph of such widths is
(the planner measures that). Pure. Next: ``facts``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract.facts import Widths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.models.gguf_header import Tensor
    from terrace_runtime.models.metadata import Keys

_GATE = re.compile(r"^(?:enc\.|dec\.)?blk\.\d+\.ffn_gate(_exps)?\.weight$")
_UP = re.compile(r"^(?:enc\.|dec\.)?blk\.\d+\.ffn_up\.weight$")
_RWKV_MIXES: Final = 3
"""RWKV mixes about as much as a Mamba of three times its width."""


def widths_of(keys: Keys, tensors: Iterable[Tensor]) -> Widths:
    """Of the widest layer."""
    width = keys.positive("embedding_length")
    wide = max(keys.per_layer("feed_forward_length", 1, 0))
    heads = max(keys.per_layer("attention.head_count", 1, 0))
    plain = width // heads if heads else 0
    per_layer = keys.number("embedding_length_per_layer_input", 0)
    streams = keys.number("altup.num_inputs", 0)
    if keys.architecture == "gemma3n":
        streams, per_layer = streams or 4, per_layer or 256
    # Rows of images have values for so many layers more.
    stacked = keys.number("n_deepstack_layers", 0) * width
    return Widths(
        query=heads * keys.number("attention.key_length", plain),
        expert=_expert(keys, wide) if keys.number("expert_count", 0) else 0,
        mixer=_mixer(keys, width, heads),
        carried=per_layer * keys.positive("block_count")
        + (streams + 2) * width * bool(streams)
        + stacked,
        gated=_is_gated(tensors, wide),
    )


def _expert(keys: Keys, wide: int) -> int:
    given = max(keys.per_layer("expert_feed_forward_length", 1, 0))
    return given or wide


def _mixer(keys: Keys, width: int, heads: int) -> int:
    if keys.number("wkv.head_size", 0):
        return _RWKV_MIXES * width
    if keys.number("shortconv.l_cache", 0):
        return width
    if head := keys.number("kda.head_dim", 0):
        return heads * head
    return keys.number("ssm.inner_size", 0)


def _is_gated(tensors: Iterable[Tensor], wide: int) -> bool:
    """Whether a gate is there, as a tensor of its own or in one with what goes up."""
    seen_up = False
    for tensor in tensors:
        if _GATE.match(tensor.name):
            return True
        if _UP.match(tensor.name):
            seen_up = True
            if wide and len(tensor.shape) > 1 and tensor.shape[1] >= 2 * wide:
                return True
    return not seen_up
