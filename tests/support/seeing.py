"""A tiny model that sees: its files, a backend with them, and an image's way into its cells."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from support import tiny_models, tiny_projectors
from support.engine_builders import runtime_config
from terrace_runtime.backend import DECODE_OK
from terrace_runtime.backend.llama import LlamaBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from terrace_runtime.backend.mtmd import MtmdImage, MtmdProjector
    from terrace_runtime.backend.projector import Grid
    from terrace_runtime.contract import RuntimeConfig

BATCH = 32
BEFORE, AFTER = "a llama climbs", " and looks down"
KINDS: dict[str, Callable[[Path], Path]] = {
    "llava": tiny_projectors.llava,
    "sliced": tiny_projectors.sliced,
    "gemma3": tiny_projectors.gemma3,
    "idefics3": tiny_projectors.idefics3,
    "qwen2vl": tiny_projectors.qwen2vl,
    "qwen2.5vl": tiny_projectors.qwen25vl,
    "qwen3vl": tiny_projectors.qwen3vl,
    "glm4v": tiny_projectors.glm4v,
    "paddleocr": tiny_projectors.paddleocr,
}
PLACED = {
    "qwen2vl": "qwen2vl",
    "qwen2.5vl": "qwen2vl",
    "qwen3vl": "qwen3vl",
    "glm4v": "qwen2vl",
    "paddleocr": "paddleocr",
}
"""Those whose images have positions in two dimensions, by the model of each."""


@dataclasses.dataclass(frozen=True)
class Files:
    """A tiny text model and every projector that fits it."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.model_of("llava")

    def model_of(self, kind: str) -> Path:
        return self.folder / f"{PLACED.get(kind, 'llama')}.gguf"

    def written(self) -> Files:
        """Itself, with all files there."""
        tiny_models.llama(self.model, marks=tiny_projectors.IDEFICS3_MARKS)
        for name in set(PLACED.values()):
            tiny_models.MODELS[name](self.folder / f"{name}.gguf")
        for kind, write in KINDS.items():
            write(self.projector(kind))
        return self

    def projector(self, kind: str) -> Path:
        return self.folder / f"eyes-{kind}.gguf"

    def config(self, projector: Path, **changes: Any) -> RuntimeConfig:
        settings = {"context_tokens": 512, "batch_tokens": BATCH, "ubatch_tokens": BATCH}
        model = self.model_of(projector.stem.removeprefix("eyes-"))
        paths = {"model_path": str(model), "projector_path": str(projector)}
        return runtime_config(**{"threads": 1, **settings, **paths, **changes})

    def load(self, projector: Path, **changes: Any) -> LlamaBackend:
        backend = LlamaBackend()
        backend.load(self.config(projector, **changes))
        return backend


def picture(seed: int = 0, width: int = 100, height: int = 60) -> NDArray[np.uint8]:
    """(height, width, 3) random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prepared(projector: MtmdProjector, image: NDArray[np.uint8]) -> MtmdImage:
    return projector.prepare(image.tobytes(), image.shape[1], image.shape[0])


def rows_of(projector: MtmdProjector, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    made = prepared(projector, image)
    found = [projector.encode(made, i) for i, chunk in enumerate(made.chunks) if chunk.rows]
    made.close()
    return found


def read_tokens(backend: LlamaBackend, tokens: list[int], slot: int, position: int) -> int:
    """Evaluate ``tokens``, with logits of the last; the next position."""
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        backend.batch.clear()
        backend.batch.extend(part, slot, position, outputs=1)
        assert backend.decode() == DECODE_OK
        position += len(part)
    return position


def read_image(
    backend: LlamaBackend,
    image: NDArray[np.uint8],
    slot: int,
    position: int,
    *,
    is_causal: bool | None = None,
    step: int = BATCH,
    wants_logits: bool = False,
    grid: Grid | None = None,
) -> int:
    """Evaluate all that ``image`` becomes; the next position. ``grid``: rows stand so instead."""
    assert backend.projector is not None
    made = prepared(backend.projector, image)
    for index, chunk in enumerate(made.chunks):
        if chunk.tokens:
            position = read_tokens(backend, list(chunk.tokens), slot, position)
            continue
        rows = backend.projector.encode(made, index)
        causal = chunk.is_causal if is_causal is None else is_causal
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            code = backend.decode_embeddings(
                slot,
                position,
                part,
                is_causal=causal,
                wants_logits=wants_logits,
                grid=grid or chunk.grid,
                first=start,
            )
            assert code == DECODE_OK
            position += len(part)
    return position


def logits_after(
    backend: LlamaBackend, image: NDArray[np.uint8], slot: int = 0, **how: Any
) -> NDArray[np.float32]:
    """(vocabulary,) after BEFORE, ``image`` and AFTER; the slot is empty again."""
    texts = [backend.tokenize(text, special=False, add_bos=False) for text in (BEFORE, AFTER)]
    position = read_tokens(backend, texts[0], slot, 0)
    position = read_image(backend, image, slot, position, **how)
    read_tokens(backend, texts[1], slot, position)
    found: NDArray[np.float32] = backend.logits()[0].copy()
    backend.seq_rm(slot)
    return found
