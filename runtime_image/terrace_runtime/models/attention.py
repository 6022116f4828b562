"""How many values each layer's attention keeps per token, and for how many tokens.

Owns: KV heads, lengths of keys and values, sliding windows: what llama.cpp 0c1e57098 allocates
(``llama_model::create_memory``, ``llama_hparams``, each architecture's ``load_arch_hparams``).
Does not own: recurrent states (``recurrent.py``) or weights (``layers.py``). Pure. Next:
``layers.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from terrace_runtime.models.gguf_header import Skipped
from terrace_runtime.models.recurrent import recurrent_layers

if TYPE_CHECKING:
    from terrace_runtime.models.metadata import Keys


class _Slide(NamedTuple):
    """The default pattern of an architecture with sliding windows."""

    period: int
    """One layer of so many sees all; 0: the header must have one claim per layer."""
    first_is_full: bool = False
    """Else the last of a period is."""
    default: int = 0
    """Window where the header names none."""
    fixed: int = 0
    """Window whatever the header names, unless that is 0."""


_SLIDES: Final = {
    "afmoe": _Slide(4),
    "cohere2": _Slide(4),
    "cohere2moe": _Slide(4, first_is_full=True),
    "dots3note": _Slide(0),
    "exaone-moe": _Slide(4),
    "exaone4": _Slide(4, default=4096),
    "gemma-embedding": _Slide(6),
    "gemma2": _Slide(2, default=4096),
    "gemma3": _Slide(6),
    "gemma3n": _Slide(5),
    "gemma4": _Slide(0),
    "gpt-oss": _Slide(2),
    "granite_swa": _Slide(0),
    "laguna": _Slide(4, first_is_full=True),
    "llama4": _Slide(4, default=8192, fixed=8192),
    "maple": _Slide(0),
    "mellum": _Slide(4),
    "mimo2": _Slide(0),
    "muse-glimmer": _Slide(4),
    "olmo2": _Slide(4),
    "plamo3": _Slide(8),
    "smallthinker": _Slide(4, first_is_full=True, fixed=4096),
    "spark2_5": _Slide(0),
    "step35": _Slide(0),
}
"""Architectures whose layers llama.cpp lets slide; in all others every layer sees all."""
_EXAONE4_LAYERS: Final = 64
"""The one size of exaone4 that slides."""
_ALL_ATTENTION_SLIDES: Final = frozenset({"lfm2", "lfm2moe"})
_GEMMA3N_OWN_LAYERS: Final = 20
"""Later layers of gemma3n use the cells of earlier ones."""
_INDEXED: Final = frozenset({"deepseek32", "glm-dsa"})
"""Beside the latent row a key for their index is kept."""
_NO_CELLS: Final = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
_BOTH: Final = frozenset({"falcon-h1"})
"""Every layer has attention and a state."""
_ROUTER: Final = frozenset({"graniteswitch"})
"""Its last layers are called drafting ones and are part of the trunk."""


class Cells(NamedTuple):
    """What one layer keeps of a token."""

    kv_heads: int
    key_length: int
    value_length: int
    window: int


class Memory(NamedTuple):
    """What one layer keeps of a sequence."""

    cells: Cells
    is_recurrent: bool


NOTHING: Final = Cells(0, 0, 0, 0)


def layer_memories(keys: Keys, count: int, *, has_cells: bool) -> list[Memory]:
    """The memory of each of ``count`` layers; ``has_cells`` is false for encoders."""
    heads = keys.per_layer("attention.head_count", count, 0)[:count]
    kv_heads = heads
    if keys.get("attention.head_count_kv") is not None:
        kv_heads = keys.per_layer("attention.head_count_kv", count, 0)[:count]
    trunk = trunk_layers(keys, count)
    recurrent = recurrent_layers(keys, kv_heads, trunk)
    windows = _windows(keys, count, recurrent)
    own = _layers_with_own_cells(keys, count)
    memories = []
    for index in range(count):
        keeps = kv_heads[index] and index < own and index < trunk and has_cells
        skips = recurrent[index] and keys.architecture not in _BOTH
        cells = NOTHING
        if keeps and not skips and keys.architecture not in _NO_CELLS:
            cells = _cells(keys, kv_heads[index], windows[index])
        memories.append(Memory(cells, recurrent[index]))
    return memories


def trunk_layers(keys: Keys, count: int) -> int:
    """Layers that every token goes through; those behind them draft, which Terrace does not use."""
    drafting = keys.number("nextn_predict_layers", 0)
    if keys.architecture in _ROUTER or drafting >= count:
        return count
    return count - drafting


def _cells(keys: Keys, kv_heads: int, window: int) -> Cells:
    heads = max(keys.per_layer("attention.head_count", 1, 0))
    plain = keys.positive("embedding_length") // heads if heads else 0
    key = keys.number("attention.key_length", plain)
    value = keys.number("attention.value_length", plain)
    if window:
        key = keys.number("attention.key_length_swa", key)
        value = keys.number("attention.value_length_swa", value)
    if keys.number("attention.key_length_mla", 0):
        # Latent attention keeps one compressed row per token, from which values come as well.
        value = 0
        if keys.architecture in _INDEXED:
            key += keys.number("attention.indexer.key_length", 0)
    return Cells(kv_heads, key, value, window)


def _layers_with_own_cells(keys: Keys, count: int) -> int:
    if keys.architecture == "gemma3n":
        return min(count, _GEMMA3N_OWN_LAYERS)
    if keys.architecture == "gemma4":
        return max(0, count - keys.number("attention.shared_kv_layers", 0))
    return count


def _windows(keys: Keys, count: int, recurrent: list[bool]) -> list[int]:
    """Sliding window per layer in tokens, 0 for full attention; only where llama.cpp slides."""
    window = keys.number("attention.sliding_window", 0)
    if keys.architecture in _ALL_ATTENTION_SLIDES:
        return [0 if is_recurrent else window for is_recurrent in recurrent]
    slide = _SLIDES.get(keys.architecture)
    if slide is None or (keys.architecture == "exaone4" and count != _EXAONE4_LAYERS):
        return [0] * count
    is_named = keys.get("attention.sliding_window") is not None
    window = (slide.fixed or window) if window else (0 if is_named else slide.default)
    return [window if slides else 0 for slides in _pattern(keys, count, slide)]


def _pattern(keys: Keys, count: int, slide: _Slide) -> list[bool]:
    given = keys.get("attention.sliding_window_pattern")
    if isinstance(given, (str, Skipped)):
        return [False] * count
    if isinstance(given, tuple):
        return [bool(claim) for claim in (given + (False,) * count)[:count]]
    if not slide.period:
        return [False] * count
    period = keys.number("attention.sliding_window_pattern", slide.period)
    if period == 0:
        return [True] * count
    full = 0 if slide.first_is_full else period - 1
    return [index % period != full for index in range(count)]
