"""Which layers of a model keep a recurrent state, and how large it is.

Owns: the patterns and sizes that llama.cpp 0c1e57098 uses (``llama_hparams::n_embd_r``,
``n_embd_s`` and each architecture's ``load_arch_hparams``). Does not own: attention
(``attention.py``). Pure. Next: ``layers.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from terrace_runtime.models.metadata import invalid_model, names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.models.metadata import Keys


_ALL_LAYERS: Final = names_of("arwkv7 falcon-h1 mamba mamba2 rwkv6 rwkv6qwen2 rwkv7")
_WITHOUT_KV_HEADS: Final = names_of(
    "bailingmoe3 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe plamo2"
)
"""Layers that have no KV heads are recurrent."""
_WITHOUT_FEED_FORWARD: Final = names_of("nemotron_h nemotron_h_moe")
"""Layers that have neither KV heads nor a feed-forward block are recurrent."""
_BY_INTERVAL: Final = names_of("minimax-01 qwen35 qwen35moe qwen3next qwen4exp")
"""All but every n-th layer are recurrent, or those that an array claims."""
_DEFAULT_INTERVAL: Final = 4
MAX_STATE_BYTES: Final = 2**50
_FLOAT: Final = 4


def recurrent_layers(keys: Keys, kv_heads: Sequence[int], trunk: int) -> list[bool]:
    """Per layer whether it keeps a state; layers from ``trunk`` on only draft and keep none."""
    architecture, count = keys.architecture, len(kv_heads)
    if architecture in _ALL_LAYERS:
        found = [True] * count
    elif architecture in _WITHOUT_KV_HEADS:
        found = [heads == 0 for heads in kv_heads]
    elif architecture in _WITHOUT_FEED_FORWARD:
        widths = keys.per_layer("feed_forward_length", count, 0)
        found = [not heads and not width for heads, width in zip(kv_heads, widths, strict=False)]
    elif architecture in _BY_INTERVAL:
        found = _by_interval(keys, count)
    else:
        return [False] * count
    return [is_recurrent and index < trunk for index, is_recurrent in enumerate(found)]


def _by_interval(keys: Keys, count: int) -> list[bool]:
    claims = keys.get("attention.recurrent_layers")
    if isinstance(claims, tuple):
        return [bool(claim) for claim in (claims + (False,) * count)[:count]]
    interval = keys.number("full_attention_interval", _DEFAULT_INTERVAL)
    if interval == 0:
        invalid_model(f"{keys.architecture}.full_attention_interval is 0")
    return [(index + 1) % interval != 0 for index in range(count)]


def state_bytes(keys: Keys) -> int:
    """Bytes of the state of one sequence in one recurrent layer: n_embd_r + n_embd_s of f32."""
    size = _FLOAT * _state_values(keys)
    if size > MAX_STATE_BYTES:
        invalid_model(f"its recurrent state would take {size} bytes per sequence and layer")
    return size


def _state_values(keys: Keys) -> int:
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
