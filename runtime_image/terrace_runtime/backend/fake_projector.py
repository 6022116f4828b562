"""A deterministic projector without mtmd: for tests of the engine and the API.

Owns: rows that are a pure function of the pixels, so that a lost, doubled or foreign row changes
the answer of ``FakeBackend``. Does not own: anything about sight. Next: ``fake.py``.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import BackendError
from terrace_runtime.backend.projector import (
    EmbeddingInput,
    Grid,
    MediaChunk,
    Prepared,
    Projector,
    check_image,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terrace_runtime.backend.batch import Batch
    from terrace_runtime.contract import RuntimeConfig

PATCH: Final = 16
"""Pixels of a row's side; a started patch is a row too."""
BEGIN, BETWEEN, END = ord("<"), ord("|"), ord(">")
"""Tokens around and between pieces."""
_WIDTH: Final = 8
_ROW_TOKEN: Final = 0x40000000


@dataclass
class FakePrepared(Prepared):
    """An image of one piece, or of two where it is twice as wide as high."""

    pieces: tuple[NDArray[np.uint8], ...]
    """(height, width, 3) each."""
    is_causal: bool
    closed: bool = False

    @property
    @override
    def chunks(self) -> tuple[MediaChunk, ...]:
        chunks = [MediaChunk(tokens=(BEGIN,))]
        for index, piece in enumerate(self.pieces):
            if index:
                chunks.append(MediaChunk(tokens=(BETWEEN,)))
            chunks.append(MediaChunk(rows=len(_patches(piece)), is_causal=self.is_causal))
        return (*chunks, MediaChunk(tokens=(END,)))

    @override
    def close(self) -> None:
        self.closed = True


@dataclass
class FakeProjector(Projector):
    """See the port. ``on_encode`` is called first in every ``encode``: a slow or failing one."""

    is_causal: bool = True
    on_encode: Callable[[], None] | None = None
    encoded: list[int] = field(default_factory=list)
    """Rows of every piece that was encoded."""
    prepared: list[FakePrepared] = field(default_factory=list)
    closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    @override
    def name(self) -> str:
        return "fake"

    @property
    @override
    def width(self) -> int:
        return _WIDTH

    @property
    @override
    def weight_bytes(self) -> int:
        return 0

    @property
    @override
    def compute_bytes(self) -> int:
        return 0

    @override
    def prepare(self, rgb: bytes, width: int, height: int) -> FakePrepared:
        check_image(rgb, width, height)
        pixels = np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
        count = 2 if width >= 2 * height else 1
        made = FakePrepared(tuple(np.array_split(pixels, count, axis=1)), self.is_causal)
        self.prepared.append(made)
        return made

    @override
    def encode(self, prepared: Prepared, index: int) -> NDArray[np.float32]:
        assert isinstance(prepared, FakePrepared)
        with self._lock:
            if self.on_encode is not None:
                self.on_encode()
            if prepared.closed or not prepared.chunks[index].rows:
                raise BackendError(f"chunk {index} is no image piece, or the image was closed")
            patches = _patches(prepared.pieces[index // 2])
            self.encoded.append(len(patches))
            return np.stack([_row(patch) for patch in patches])

    @override
    def close(self) -> None:
        self.closed = True


class FakeEmbeddingInput(EmbeddingInput, ABC):
    """What ``FakeBackend`` does with rows."""

    _batch: Batch
    _config: RuntimeConfig
    _projector: FakeProjector | None

    @property
    @override
    def projector(self) -> FakeProjector | None:
        return self._projector

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
        count = len(rows)
        most = self._config.batch_tokens if is_causal else self._config.ubatch_tokens
        if self._projector is None or rows.shape != (count, self._projector.width):
            raise BackendError(f"bad rows: {rows.shape}")
        if not 0 < count <= most:
            raise BackendError(f"bad batch: {count} rows, at most {most} are possible")
        self._batch.clear()
        self._batch.num_outputs = int(wants_logits)
        outputs = [0] * (count - 1) + [int(wants_logits)]
        positions = list(range(position, position + count))
        tokens = _row_tokens(rows, is_causal=is_causal)
        return self._decode([slot] * count, positions, tokens, outputs)

    @abstractmethod
    def _decode(
        self, slots: list[int], positions: list[int], tokens: list[int], outputs: list[int]
    ) -> int:
        """Evaluate rows in this order."""


def _row_tokens(rows: NDArray[np.float32], *, is_causal: bool) -> list[int]:
    """What the cells of ``rows`` hold in FakeBackend: a number beyond its vocabulary for each.

    Rows that attend to each other change all others too.
    """
    seed = 0 if is_causal else crc32(rows.tobytes())
    return [_ROW_TOKEN | crc32(row.tobytes(), seed) & 0xFFFF for row in rows]


def _patches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    height, width, _ = pixels.shape
    return [
        pixels[top : top + PATCH, left : left + PATCH]
        for top in range(0, height, PATCH)
        for left in range(0, width, PATCH)
    ]


def _row(patch: NDArray[np.uint8]) -> NDArray[np.float32]:
    digest = sha256(bytes(patch.shape) + patch.tobytes()).digest()
    return np.frombuffer(digest[:_WIDTH], np.uint8).astype(np.float32)
