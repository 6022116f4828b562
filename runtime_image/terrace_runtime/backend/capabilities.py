"""What the loaded model can do in this build: asked of llama.cpp, not guessed from names.

Owns: the capability matrix. Does not own: what the engine makes of it (``engine.prefix``) or the
binding; ``llama.py`` hands it in, for it alone imports it. Next: ``GET /v1/runtime`` shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from terrace_runtime.backend import DECODE_OK
from terrace_runtime.contract import Capabilities

if TYPE_CHECKING:
    from terrace_runtime.backend import Backend


def probe(lib: Any, model: Any, backend: Backend) -> Capabilities:
    """Decode two tokens and try what can be tried with them; leaves slot 0 empty."""
    can_cut = _can_cut(backend)
    is_plain = not (
        lib.llama_model_is_recurrent(model)
        or lib.llama_model_is_hybrid(model)
        or lib.llama_model_n_swa(model) > 0
    )
    reuse: Literal["blocks", "checkpoints"] = "blocks" if can_cut and is_plain else "checkpoints"
    return Capabilities(
        reuse=reuse,
        can_cut=can_cut,
        can_share_cells=reuse == "blocks" and backend.scratch is not None,
    )


def _can_cut(backend: Backend) -> bool:
    backend.batch.clear()
    backend.batch.extend([0, 0], 0, 0, outputs=1)
    can_cut = backend.decode() == DECODE_OK and backend.seq_rm(0, 1)
    backend.seq_rm(0)
    backend.batch.clear()
    return can_cut
