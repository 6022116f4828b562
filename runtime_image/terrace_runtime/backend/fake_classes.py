"""The fake backend as an embedding model, and as an encoder with a decoder.

Owns: vectors and next tokens that are pure functions of what the model was shown, and the rules of
llama.cpp for both classes. Does not own: cells and faults (``fake.py``). Next: ``engine``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import BackendError, BackendInfo
from terrace_runtime.backend.batch import Batch
from terrace_runtime.backend.embedding import EMBEDDING_SEQUENCES
from terrace_runtime.backend.fake import BOS, FakeBackend
from terrace_runtime.contract import Capabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from terrace_runtime.contract import RuntimeConfig

WIDTH = 8


@dataclass
class FakeEmbedder(FakeBackend):
    """Embeds: an encoder takes each input at once, a decoder also in steps."""

    model_class: Literal["encoder", "decoder"] = "encoder"

    @property
    @override
    def info(self) -> BackendInfo:
        pooling = "mean" if self.model_class == "encoder" else "last"
        found = Capabilities(model_class=self.model_class, can_embed=True, pooling=pooling)
        return replace(super().info, capabilities=found, embedding_width=WIDTH)

    @override
    def load(self, config: RuntimeConfig) -> None:
        super().load(config)
        if self.model_class == "encoder":
            self._batch = Batch(max(config.batch_tokens, config.context_tokens))
        self._room = config.context_tokens + self._batch.capacity
        self._slots = min(EMBEDDING_SEQUENCES, self._batch.capacity)

    @override
    def _evaluate(self, slots: list[int], tokens: list[int], outputs: list[int]) -> None:
        if not all(outputs):
            raise BackendError("an embedding context outputs every token")
        if self.model_class == "encoder":
            self._cells.clear()
        super()._evaluate(slots, tokens, [0] * len(outputs))

    @override
    def embedding(self, slot: int) -> NDArray[np.float32]:
        seed = crc32(np.asarray(self.tokens_of(slot), np.int32).tobytes())
        return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


@dataclass
class FakeEncoderDecoder(FakeBackend):
    """Decodes what depends on the prompt that it encoded last."""

    reuse: Literal["blocks", "checkpoints", "none"] = "none"

    @property
    @override
    def info(self) -> BackendInfo:
        found = Capabilities(model_class="encoder-decoder")
        return replace(super().info, capabilities=found, decoder_start=BOS)

    @override
    def load(self, config: RuntimeConfig) -> None:
        super().load(config)
        self._batch = Batch(max(config.batch_tokens, config.context_tokens))
        self._slots = 1
        self.encoded: list[int] = []

    @override
    def encode(self, tokens: Sequence[int]) -> None:
        if not 0 < len(tokens) <= self._batch.capacity:
            raise BackendError(f"a prompt of {len(tokens)} tokens")
        self.encoded = list(tokens)

    @override
    def next_token(self, history: list[int]) -> int:
        return super().next_token([*self.encoded, *history])
