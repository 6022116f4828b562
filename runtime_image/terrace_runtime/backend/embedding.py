"""Contexts of models that do not simply continue a text: embeddings, and encoder with decoder.

Owns: their settings, how a batch of theirs is evaluated, and reading vectors. Does not own: which
inputs share a batch (``engine.embedding``), or opening the context (``llama.py``, which hands the
binding in). Facts (llama-context.cpp at 0c1e57098): an embedding context outputs every token; what
attends to later tokens must lie in one ubatch; a model without memory is encoded by llama_decode
too. Next: ``llama.py``.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from terrace_runtime.backend import BackendError
from terrace_runtime.models.classes import POOLING

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.models.classes import Kind

EMBEDDING_SEQUENCES = 64
"""Most inputs of one batch; a sequence costs nothing where cells are shared."""
EXACT_SCORE_BYTES = 64 * 1024 * 1024
"""Up to so much the scores of all tokens with all tokens are computed as they are: flash attention
rounds to f16 on the way, which a vector shows in its fourth digit (*measured*: 2e-4, else 6e-6)."""
_PAD = 256
_FLOAT = 4
_FLASH_OFF = 0
"""LLAMA_FLASH_ATTN_TYPE_DISABLED"""


def fit_context(params: Any, config: RuntimeConfig, kind: Kind, heads: int) -> bool:
    """Change a plain decoder's llama_context_params to what ``kind`` with ``heads`` heads needs.

    True: the last sequence id is one for moving blocks.
    """
    if kind.model_class == "decoder" and not kind.pooling:
        return config.kv_unified
    longest = _padded(config.context_tokens)
    if fits_one_batch(kind):
        params.n_batch = params.n_ubatch = max(config.batch_tokens, longest)
    params.n_outputs_max = params.n_outputs_max_per_seq = 0
    if kind.model_class == "encoder-decoder":
        # llama.cpp keeps one encoder output per context, so one sequence looks at it.
        params.n_seq_max = 1
        params.n_ctx = longest
        return False
    params.embeddings = True
    params.pooling_type = POOLING.index(kind.pooling)
    params.kv_unified = True
    params.n_seq_max = min(EMBEDDING_SEQUENCES, params.n_batch)
    # One input that is under way, and a batch of others.
    params.n_ctx = longest + _padded(params.n_batch)
    reach = params.n_batch if kind.model_class == "encoder" else params.n_ctx
    can_be_exact = config.kv_value_type == "f16"  # llama.cpp quantises values for flash alone
    if can_be_exact and _FLOAT * heads * params.n_ubatch * reach <= EXACT_SCORE_BYTES:
        params.flash_attn_type = _FLASH_OFF
    return False


def fits_one_batch(kind: Kind) -> bool:
    """Whether an input must be evaluated at once; a causal model's last state can come in steps."""
    return not (kind.model_class == "decoder" and kind.pooling in ("", "last"))


def evaluation(lib: Any, model: Any, kind: Kind, decode: Any) -> Callable[[Any, Any], int]:
    """The call that evaluates a batch of this kind."""
    if kind.model_class == "encoder" and lib.llama_model_has_encoder(model):
        encode: Callable[[Any, Any], int] = lib.llama_encode
        return encode
    found: Callable[[Any, Any], int] = decode
    return found


def embedding_width(lib: Any, model: Any, kind: Kind) -> int:
    """Numbers of one vector; 0 for models that give none."""
    return int(lib.llama_model_n_embd_out(model)) if kind.pooling else 0


def read_embedding(lib: Any, model: Any, context: Any, slot: int) -> NDArray[np.float32]:
    """The pooled vector of ``slot`` in the last batch; a copy, as llama.cpp made it."""
    address = lib.llama_get_embeddings_seq(context, slot)
    if not address:
        raise BackendError(f"llama.cpp has no embedding for sequence {slot} of the last batch")
    width = int(lib.llama_model_n_embd_out(model))
    vector = ctypes.cast(address, ctypes.POINTER(ctypes.c_float * width)).contents
    return np.array(vector, np.float32)


def _padded(tokens: int) -> int:
    return -(-tokens // _PAD) * _PAD
