"""The part of the llama.cpp backend that takes images: its projector, and rows in place of tokens.

Owns: when a projector is opened and what is told of it. Does not own: the projector (``mtmd.py``),
a decode of rows (``embeddings.py``) or the binding; ``llama.py``, which is this and more, hands it
in.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from terrace_runtime.backend import DECODE_OK, Backend, BackendError
from terrace_runtime.backend.binding import mtmd_binding
from terrace_runtime.backend.cpu import usable_threads
from terrace_runtime.backend.loadlog import LoadLog, LogTap
from terrace_runtime.backend.mtmd import MtmdProjector
from terrace_runtime.contract import RuntimeConfig, pod_path

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.backend.embeddings import EmbeddingRows
    from terrace_runtime.backend.positions import SlotPositions
    from terrace_runtime.backend.projector import Grid


class LlamaImages(Backend):
    """See the port for the contract of each method."""

    _projector: MtmdProjector | None = None
    _rows: EmbeddingRows | None = None
    """Of the context that is open now."""
    _positions: SlotPositions
    _has_placed_images: bool
    _doing = ""
    """Begins the last words of an abort."""

    @property
    @override
    def projector(self) -> MtmdProjector | None:
        return self._projector

    def _open_projector(
        self, lib: Any, config: RuntimeConfig, model: Any, threads: int, tap: LogTap
    ) -> None:
        """Open the one that ``config`` names; ``tap`` hears llama.cpp. Raises BackendError."""
        if not config.projector_path:
            return
        path = pod_path(config.projector_path)
        if self._rows is None:
            raise BackendError(f"projector_path: {path}, but this model does not generate text")
        log, model_log = LoadLog(), tap.sink
        tap.install(log)
        self._doing = f"opening the projector {path}: "
        self._projector = MtmdProjector(mtmd_binding(lib), lib, log)
        self._projector.load(path, model, threads, self._rows.together)
        self._has_placed_images = self._projector.is_placed
        self._doing = ""
        tap.install(model_log)

    def _projector_bytes(self) -> tuple[int, int]:
        """Weights and compute buffers."""
        seen = self._projector
        return (0, 0) if seen is None else (seen.weight_bytes, seen.compute_bytes or 0)

    @override
    def decode_embeddings(
        self,
        slot: int,
        position: int,
        rows: NDArray[np.float32],
        *,
        is_causal: bool,
        wants_logits: bool,
        grid: Grid | None = None,
        first: int = 0,
    ) -> int:
        if self._rows is None:
            raise BackendError("this model does not read rows of embeddings")
        self.batch.clear()
        self.batch.num_outputs = int(wants_logits)
        self._rows.check(slot, rows, is_causal=is_causal)
        held, start = self._positions[slot], position - first
        code = self._rows.decode(
            slot,
            held.of(start if grid is not None else position),
            rows,
            is_causal=is_causal,
            wants_logits=wants_logits,
            grid=grid,
            first=first,
        )
        if code == DECODE_OK and grid is not None:
            held.add(start, first + len(rows), grid)
            self._positions.note(slot)
        return code


def open_alone(lib: Any, tap: LogTap, model_path: Path, path: Path) -> None:
    """Open a projector beside the vocabulary of a model, whose weights are not read."""
    log = LoadLog()
    tap.install(log)
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(model_path).encode(), params)
    if not model:
        raise BackendError(f"llama.cpp cannot read the vocabulary of {model_path}: {log.complaint}")
    projector = MtmdProjector(mtmd_binding(lib), lib, log)
    projector.load(path, model, usable_threads(0), sys.maxsize)
    projector.close()
    lib.llama_model_free(model)
