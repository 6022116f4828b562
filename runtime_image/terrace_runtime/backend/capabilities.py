"""What the loaded model can do in this build: asked of llama.cpp, not guessed from names.

Owns: the kind of the loaded model and the capability matrix (docs/model-classes.md shows it per
class). Does not own: what the engine makes of it (``engine.prefix``), the names of architectures
(``models.classes``) or the binding; ``llama.py`` hands it in, for it alone imports it. Next:
``GET /v1/runtime`` shows it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Literal

from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.contract import Capabilities
from terrace_runtime.models.classes import Kind, Refusal, classify

if TYPE_CHECKING:
    from terrace_runtime.backend import Backend

_TEXT_BYTES = 128
_PARTIAL_ONLY = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: the part of a state that has no cell per token."""


def kind_of(lib: Any, model: Any) -> Kind:
    """What the loaded model can be used for; raises BackendError with the reason for the others."""
    architecture = _metadata(lib, model, "general.architecture")
    pooling = _metadata(lib, model, f"{architecture}.pooling_type")
    kind = classify(
        architecture,
        is_causal=_metadata(lib, model, f"{architecture}.attention.causal") != "false",
        pooling=int(pooling) if pooling.isdigit() else None,
    )
    if isinstance(kind, Refusal):
        raise BackendError(f"the model is {kind.reason}")
    return kind


def probe(lib: Any, model: Any, context: Any, kind: Kind, backend: Backend) -> Capabilities:
    """Decode two tokens and try what can be tried with them; leaves slot 0 empty."""
    if kind.pooling or kind.model_class != "decoder":
        # Nothing outlives a request: an embedding ends with its batch, and what a decoder looked
        # at is gone with the next prompt.
        return Capabilities(
            model_class=kind.model_class, can_embed=bool(kind.pooling), pooling=kind.pooling
        )
    backend.batch.clear()
    backend.batch.extend([0, 0], 0, 0, outputs=1)
    is_decoded = backend.decode() == DECODE_OK
    is_plain = is_decoded and _has_cells_alone(lib, model, context)
    # Cells that slid out of a window are gone, so a cut that llama.cpp grants would leave holes.
    can_cut = is_plain and backend.seq_rm(0, 1)
    backend.seq_rm(0)
    backend.batch.clear()
    reuse: Literal["blocks", "checkpoints"] = "blocks" if can_cut else "checkpoints"
    return Capabilities(
        reuse=reuse,
        can_cut=can_cut,
        can_share_cells=can_cut and backend.scratch is not None,
        can_shift=bool(lib.llama_memory_can_shift(lib.llama_get_memory(context))),
    )


def _has_cells_alone(lib: Any, model: Any, context: Any) -> bool:
    """A sequence's state is one cell per token and nothing besides (slot 0 holds some)."""
    if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
        return False
    whole, partial = (
        lib.llama_state_seq_get_size_ext(context, 0, flags) for flags in (0, _PARTIAL_ONLY)
    )
    # Sliding-window models keep two caches, and the partial state is the smaller one's.
    return bool(whole == partial)


def _metadata(lib: Any, model: Any, key: str) -> str:
    room = ctypes.create_string_buffer(_TEXT_BYTES)
    found = lib.llama_model_meta_val_str(model, key.encode(), room, _TEXT_BYTES)
    return room.value.decode("utf-8", "replace") if found >= 0 else ""
