"""A deterministic backend without llama.cpp: for tests of the engine, the API and the SDK.

Owns: a byte-level vocabulary, a KV cache that refuses what llama.cpp refuses, and faults on order.
Does not own: anything about language. The next token is a pure function of every token that the
sequence's cells hold, so a lost, doubled or foreign cell changes the answer. Next: ``engine``.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import (
    DECODE_NO_ROOM,
    DECODE_OK,
    Backend,
    BackendError,
    BackendInfo,
    SamplerChain,
    SamplerSettings,
)
from terrace_runtime.backend.batch import Batch
from terrace_runtime.backend.fake_cells import Cell, FakeCells
from terrace_runtime.backend.fake_choices import FakeDrafter, FakeSampler, FakeShortlist
from terrace_runtime.backend.fake_language import next_byte
from terrace_runtime.backend.fake_projector import FakeEmbeddingInput, FakeProjector
from terrace_runtime.backend.grammar import Grammars
from terrace_runtime.backend.vocabulary import by_length
from terrace_runtime.contract import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from terrace_runtime.contract import RuntimeConfig

BOS, EOS, TURN, END_OF_TURN = 256, 257, 258, 259
_CONTROLS = {
    "<|bos|>": BOS,
    "<|endoftext|>": EOS,
    "<|im_start|>": TURN,
    "<|im_end|>": END_OF_TURN,
}
_PIECES = (*(bytes([value]) for value in range(256)), *(b"" for _ in _CONTROLS))
_CONTROL = re.compile("(" + "|".join(map(re.escape, _CONTROLS)) + ")")
_EOS_ODDS = 40
"""One token in this many ends the answer."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content"
    " ~ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Fault:
    """What one decode does instead of, or besides, working."""

    code: int = DECODE_OK
    """Returned in place of an evaluation when it is not DECODE_OK."""
    error: str = ""
    """Raised as BackendError when not empty."""
    wait: Callable[[], None] | None = None
    """Called first: a slow step, on whatever clock the test uses."""


@dataclass
class FakeBackend(FakeCells, FakeEmbeddingInput, Backend):
    """See the port. ``faults`` maps the number of a decode (from 0) to what goes wrong in it."""

    faults: Mapping[int, Fault] = field(default_factory=dict)
    kv_cells: int | None = None
    """Cells in all; None: parallel x context, as many as the engine can ever use."""
    eos_odds: int = _EOS_ODDS
    draft_errors: int = 3
    """One guess of the draft model in so many is wrong."""
    images: FakeProjector | None = None
    """The projector; None: a causal one where the configuration names a file."""
    load_error: str = ""
    load_signal: int = 0
    """Sent to our own process while loading, as a build for another CPU does with SIGILL."""

    def __post_init__(self) -> None:
        self.decodes = 0
        self.ubatches = 0
        """Evaluations that llama.cpp would need: one more at every break in the slots' order."""
        self.closed = False
        self._salt = 0
        """Mixed into every cell computed: an adapter makes other keys and values of a token."""
        self._shortlist: FakeShortlist | None = None
        self._rows: list[tuple[int, ...]] = []

    @property
    @override
    def info(self) -> BackendInfo:
        return BackendInfo(
            vocabulary=len(_PIECES),
            threads=1,
            capabilities=Capabilities(
                reuse=self.reuse,
                can_cut=self.reuse == "blocks",
                can_share_cells=self.reuse == "blocks" and self.scratch is not None,
                device_candidates=self._shortlist.size if self._shortlist else 0,
            ),
            eog=frozenset({EOS, END_OF_TURN}),
            pieces=_PIECES,
            chat_template=TEMPLATE,
            bos="<|bos|>",
            eos="<|endoftext|>",
            special_tokens=by_length(_CONTROLS),
            controls={token: text for text, token in _CONTROLS.items()},
            build="fake",
        )

    @property
    @override
    def batch(self) -> Batch:
        return self._batch

    @override
    def load(self, config: RuntimeConfig) -> None:
        if self.load_signal:
            signal.raise_signal(self.load_signal)
        if self.load_error:
            raise BackendError(self.load_error)
        self._config = config
        self._slots = config.parallel
        self._grammars = Grammars(self.info, self._tokens_of)
        self._batch = Batch(config.batch_tokens)
        self._projector = (self.images or FakeProjector()) if config.projector_path else None
        self._drafter = FakeDrafter(self) if config.speculation.mode == "draft" else None
        self._shortlist = FakeShortlist(self) if config.device_sampling == "on" else None
        whole = config.parallel * config.context_tokens
        self._room = self.kv_cells or (config.kv_unified and config.kv_cells) or whole
        self._is_unified = config.kv_unified
        shape = (config.max_outputs, len(_PIECES))
        self._logits: NDArray[np.float32] = np.zeros(shape, np.float32)

    @property
    @override
    def drafter(self) -> FakeDrafter | None:
        return self._drafter

    @property
    @override
    def shortlist(self) -> FakeShortlist | None:
        return self._shortlist

    @override
    def tokenize(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        tokens = [BOS] if add_bos else []
        for part in _CONTROL.split(text) if special else [text]:
            control = _CONTROLS.get(part) if special else None
            if control is not None:
                tokens.append(control)
            else:
                tokens.extend(part.encode("utf-8", "replace"))
        return tokens

    def _tokens_of(self, text: str) -> list[int]:
        return self.tokenize(text, special=False, add_bos=False)

    @override
    def decode(self) -> int:
        batch = self._batch
        columns = (batch.sequences, batch.positions, batch.tokens, batch.outputs)
        return self._decode(*(column[: batch.size].tolist() for column in columns))

    @override
    def _decode(
        self, slots: list[int], positions: list[int], tokens: list[int], outputs: list[int]
    ) -> int:
        # Trial steps, which measure what steps cost, hold nothing but token 0.
        is_trial = not any(tokens)
        fault = Fault() if is_trial else self.faults.get(self.decodes, Fault())
        self.decodes += not is_trial
        if fault.wait is not None:
            fault.wait()
        if fault.error:
            raise BackendError(fault.error)
        if fault.code != DECODE_OK:
            return fault.code
        if not self._is_valid(slots, positions):
            return -1
        if len(slots) + self.num_cells > self._room:
            return DECODE_NO_ROOM
        self._evaluate(slots, tokens, outputs)
        return DECODE_OK

    def _is_valid(self, slots: list[int], positions: list[int]) -> bool:
        """llama.cpp's own rules: known sequence ids, each position one after the one before."""
        expected = {slot: len(tokens) for slot, tokens in self._cells.items()}
        for slot, position in zip(slots, positions, strict=True):
            if not 0 <= slot < self._slots or position != expected.get(slot, 0):
                return False
            expected[slot] = position + 1
        return all(count <= self._config.context_tokens for count in expected.values())

    def _evaluate(self, slots: list[int], tokens: list[int], outputs: list[int]) -> None:
        previous = None
        row = 0
        self._row_of: dict[int, int] = {}
        for index, (slot, token, output) in enumerate(zip(slots, tokens, outputs, strict=True)):
            cells = self._cells.setdefault(slot, [])
            cells.append(Cell(token ^ self._salt, len(cells)))
            if output:
                self._logits[row] = 0
                self._logits[row, self.next_token([cell.token for cell in cells])] = 1
                self._row_of[index] = row
                row += 1
            if previous is None or slot not in (previous, previous + 1):
                self.ubatches += 1
            previous = slot

    def next_token(self, history: list[int]) -> int:
        """A pure function of the whole history; completes a UTF-8 character once it is begun."""
        return next_byte(history, history[-1] ^ self._salt, EOS, self.eos_odds)

    @override
    def encode(self, tokens: Sequence[int]) -> None:
        raise BackendError("this model has no encoder")

    @override
    def embedding(self, slot: int) -> NDArray[np.float32]:
        raise BackendError("this model does not embed")

    @override
    def logits(self) -> NDArray[np.float32]:
        rows = self._logits[: self._batch.num_outputs]
        is_whole = self._shortlist is None or not self._shortlist.is_on
        return rows if is_whole else np.full_like(rows, np.nan)

    @override
    def prepare(self, settings: SamplerSettings) -> None:
        if settings.grammar is not None:
            self._grammars.compile(settings.grammar)

    @override
    def sampler(self, settings: SamplerSettings, prompt: Sequence[int]) -> SamplerChain:
        assert prompt
        return self._grammars.hold(FakeSampler(self, settings), settings.grammar)

    def row(self, index: int) -> NDArray[np.float32]:
        """Logits of batch row ``index``."""
        row: NDArray[np.float32] = self._logits[self._row_of[index]]
        return row

    @override
    def use_adapter(self, name: str) -> None:
        if name and name not in {one.name for one in self._config.adapters}:
            raise BackendError(f"there is no adapter {name}")
        self._salt = crc32(name.encode()) & 0x3FFF0000 if name else 0

    @override
    def on_abort(self, callback: Callable[[str], None]) -> None:
        self.abort_callback = callback

    @override
    def close(self) -> None:
        self.closed = True
