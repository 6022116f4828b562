"""The settings of a llama.cpp context that generates text, from RuntimeConfig.

Owns: every field of llama_context_params that we set, and why. Does not own: where weights lie
(``offload.py``) or opening the context (``llama.py``, which hands the binding in). Next:
``llama.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terrace_runtime.backend.offload import KV_TYPES
from terrace_runtime.contract import AUTO_UNIFIED_UBATCH

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig

_PAD = 256
"""llama.cpp rounds contexts up to so many cells."""


def num_slots(config: RuntimeConfig) -> int:
    """Sequence ids: one per slot and, with unified KV, the scratch one."""
    return config.parallel + (1 if config.kv_unified else 0)


def other_layout(config: RuntimeConfig, *, unified: bool) -> RuntimeConfig:
    """``config`` as it is opened while the replica serves (``kv_auto``)."""
    ubatch = config.ubatch_tokens
    # An image whose rows attend to each other needs a whole evaluation.
    if unified and not config.projector_path:
        ubatch = min(ubatch, AUTO_UNIFIED_UBATCH)
    return config.model_copy(update={"kv_unified": unified, "ubatch_tokens": ubatch})


def context_params(lib: Any, config: RuntimeConfig, threads: int) -> Any:
    """A llama_context_params for generation."""
    params = lib.llama_context_default_params()
    params.n_ctx = _padded(config.context_tokens) * config.parallel
    if config.kv_unified and config.kv_cells:
        params.n_ctx = _padded(config.kv_cells)
    params.n_batch = config.batch_tokens
    params.n_ubatch = min(config.ubatch_tokens, config.batch_tokens)
    params.n_seq_max = num_slots(config)
    # The default reserves logits for a whole batch: gigabytes with a large vocabulary.
    params.n_outputs_max = max(num_slots(config), config.max_outputs)
    params.n_outputs_max_per_seq = config.max_outputs // config.parallel
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.type_k = KV_TYPES[config.kv_key_type]
    params.type_v = KV_TYPES[config.kv_value_type]
    params.offload_kqv = config.offload.kv_on_device
    params.kv_unified = config.kv_unified
    # Layers with a window keep no more than it; their prefixes are reused from checkpoints.
    params.swa_full = False
    params.no_perf = True
    return params


def _padded(tokens: int) -> int:
    return -(-tokens // _PAD) * _PAD
