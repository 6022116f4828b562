"""A draft model: a second, small model and context on the engine's thread that guesses ahead.

Owns: its loading, its KV cells per slot, and the check that both vocabularies are one. Does not
own: whether its guesses are right (``engine.core``) or worth their time (``engine.speculation``),
or the binding; ``llama.py`` hands it in, for it alone imports it. Its KV is unified: its sequences
have unlike numbers of tokens to read, and split KV would evaluate those one after the other.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

from terrace_runtime.backend import DECODE_OK, BackendError, Drafter
from terrace_runtime.backend.rows import LogitRows, RawBatch
from terrace_runtime.backend.vocabulary import Vocabulary
from terrace_runtime.contract import RuntimeConfig, pod_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from terrace_runtime.backend.loadlog import LoadLog

_LOG = logging.getLogger(__name__)
_BATCH_TOKENS = 512
_CONTEXT_PAD = 256


def draft_file(config: RuntimeConfig) -> Path:
    """The draft model's file; raises BackendError where there is none."""
    name = config.speculation.draft_path
    if not name:
        raise BackendError("speculation.mode is draft, but speculation.draft_path is empty")
    path = pod_path(name)
    if not path.is_file():
        raise BackendError(
            f"speculation.draft_path is {name}, but there is no file at {path}: fetch it, or set"
            " speculation.mode to ngram or off"
        )
    return path


@dataclass(slots=True)
class _Slot:
    """Cells of a slot: tokens that the history had, then guesses that it may not have."""

    num_known: int = 0
    guessed: list[int] = field(default_factory=list)

    @property
    def num_cells(self) -> int:
        return self.num_known + len(self.guessed)


class _Row(NamedTuple):
    slot: int
    position: int
    token: int
    is_output: bool


class LlamaDrafter(Drafter):
    """See the port; greedy, all sequences in one batch per guessed token."""

    def __init__(
        self,
        lib: Any,
        decode: Callable[[Any, Any], int],
        get_logits: Callable[[Any], int | None],
        log: LoadLog,
    ) -> None:
        """``lib`` is llama_cpp's low-level module, ``decode`` its llama_decode."""
        self._lib = lib
        self._decode = decode
        self._get_logits = get_logits
        self.log = log
        """Receives what llama.cpp says of the draft: its memory and complaints."""
        self._model: Any = None
        self._context: Any = None
        self._slots: dict[int, _Slot] = {}

    def load(self, config: RuntimeConfig, threads: int, vocabulary: Vocabulary) -> None:
        """Load the draft of ``config``; ``vocabulary`` is the model's. Raises BackendError."""
        path = draft_file(config)
        lib = self._lib
        params = lib.llama_model_default_params()
        # Plans count a draft in host memory. Without an empty list of devices llama.cpp would take
        # compute buffers there even for no layer.
        no_devices = (ctypes.c_void_p * 1)()
        params.n_gpu_layers, params.devices = 0, ctypes.addressof(no_devices)
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BackendError(
                f"speculation.draft_path: llama.cpp cannot load {path}: {self._complaint}"
            )
        own = Vocabulary(lib, lib.llama_model_get_vocab(self._model))
        if difference := vocabulary_difference(vocabulary, own):
            raise BackendError(
                f"speculation.draft_path: {path} has another vocabulary than the model:"
                f" {difference}; use a draft of the same family"
            )
        self._open_context(config, threads)
        self._raw = RawBatch(lib, int(lib.llama_n_batch(self._context)))
        self._rows = LogitRows(self._get_logits, config.parallel, own.size)
        self._check_cut(path)

    def _open_context(self, config: RuntimeConfig, threads: int) -> None:
        lib = self._lib
        self._max_tokens = min(config.context_tokens, int(lib.llama_model_n_ctx_train(self._model)))
        cells = self._max_tokens * config.parallel
        params = lib.llama_context_default_params()
        params.n_ctx = -(-cells // _CONTEXT_PAD) * _CONTEXT_PAD
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        params.n_seq_max = params.n_outputs_max = config.parallel
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = True
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise BackendError(
                f"llama.cpp cannot open a context for the draft model: {self._complaint}"
            )
        self._memory = lib.llama_get_memory(self._context)
        if not self._memory:
            raise BackendError("the draft model keeps no KV cache, so it cannot guess text")

    def _check_cut(self, path: Path) -> None:
        guesses = self.propose([0], [[0, 0]], 2)
        can_cut = bool(self._lib.llama_memory_seq_rm(self._memory, 0, 1, -1))
        self._reset()
        if not guesses[0]:
            raise BackendError(f"the draft model {path} cannot decode its first batch")
        if not can_cut:
            raise BackendError(
                f"the draft model {path} cannot take a wrong guess back: its cells cannot be cut"
            )

    # Serving --------------------------------------------------------------------------------------

    @override
    def propose(
        self, slots: Sequence[int], histories: Sequence[Sequence[int]], count: int
    ) -> list[list[int]]:
        guesses: dict[int, list[int]] = {slot: [] for slot in slots}
        room = {
            slot: min(count, self._max_tokens - len(history))
            for slot, history in zip(slots, histories, strict=True)
        }
        rows: list[_Row] = []
        for slot, history in zip(slots, histories, strict=True):
            if room[slot] > 0:
                rows += self._unread(slot, history, len(history))
        while rows:
            tokens = self._evaluate(rows)
            if tokens is None:
                return [[] for _ in slots]
            rows = []
            for slot, token in tokens:
                guesses[slot].append(token)
                if len(guesses[slot]) < room[slot]:
                    held = self._slots[slot]
                    rows.append(_Row(slot, held.num_cells, token, is_output=True))
                    held.guessed.append(token)
        return [guesses[slot] for slot in slots]

    @override
    def num_missing(self, slot: int, length: int) -> int:
        return max(0, min(length, self._max_tokens) - 1 - self._slot(slot).num_cells)

    @override
    def catch_up(self, slot: int, history: Sequence[int], max_tokens: int) -> int:
        stop = min(self._max_tokens, len(history)) - 1
        rows = self._unread(slot, history, min(stop, self._slot(slot).num_known + max_tokens))
        if rows and self._evaluate([row._replace(is_output=False) for row in rows]) is None:
            return 0
        return len(rows)

    @override
    def cut(self, slot: int, length: int) -> None:
        held = self._slot(slot)
        if length < held.num_cells:
            self._lib.llama_memory_seq_rm(self._memory, slot, length, -1)
        del held.guessed[max(0, length - held.num_known) :]
        held.num_known = min(held.num_known, length)

    @override
    def forget(self, slot: int) -> None:
        if self._slots.pop(slot, None) is not None:
            self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def close(self) -> None:
        """Free it; safe to call twice."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def _slot(self, slot: int) -> _Slot:
        return self._slots.setdefault(slot, _Slot())

    def _unread(self, slot: int, history: Sequence[int], stop: int) -> list[_Row]:
        """Rows of history[:stop] that have no cells yet, after dropping guesses that were wrong."""
        held = self._slot(slot)
        actual = history[held.num_known : held.num_cells]
        right = 0
        for guess, token in zip(held.guessed, actual, strict=False):
            if guess != token:
                break
            right += 1
        # The last token is read again, or there would be no logits.
        self.cut(slot, min(held.num_known + right, len(history) - 1))
        held.num_known, held.guessed = held.num_cells, []
        rows = [
            _Row(slot, position, history[position], position == len(history) - 1)
            for position in range(held.num_known, stop)
        ]
        held.num_known = max(stop, held.num_known)
        return rows

    def _evaluate(self, rows: list[_Row]) -> list[tuple[int, int]] | None:
        """(slot, likeliest next token) of each output row; None: it broke and is empty again."""
        found: list[tuple[int, int]] = []
        batch = self._raw.rows
        for start in range(0, len(rows), batch.capacity):
            part = rows[start : start + batch.capacity]
            size = batch.size = len(part)
            batch.tokens[:size] = [row.token for row in part]
            batch.positions[:size] = [row.position for row in part]
            batch.sequences[:size] = [row.slot for row in part]
            batch.outputs[:size] = [row.is_output for row in part]
            code = int(self._decode(self._context, self._raw.raw))
            if code != DECODE_OK:
                _LOG.warning("the draft model's decode returned code %d; it starts anew", code)
                self._reset()
                return None
            slots = [row.slot for row in part if row.is_output]
            if slots:
                best = self._rows.read(self._context, len(slots)).argmax(axis=1).tolist()
                found += zip(slots, best, strict=True)
        return found

    def _reset(self) -> None:
        self._slots.clear()
        self._lib.llama_memory_clear(self._memory, False)

    @property
    def _complaint(self) -> str:
        return self.log.complaint or "it gave no reason"


def vocabulary_difference(model: Vocabulary, draft: Vocabulary) -> str:
    """What is not the same in two vocabularies; empty: nothing. Token ids must mean the same."""
    if model.size != draft.size:
        return f"{draft.size} tokens, the model has {model.size}"
    for name in ("bos", "eos"):
        ours, theirs = getattr(model, name), getattr(draft, name)
        if ours != theirs:
            return f"its {name} token is {theirs}, the model's {ours}"
    for token, (ours, theirs) in enumerate(zip(model.pieces(), draft.pieces(), strict=True)):
        if ours != theirs:
            return f"token {token} is {theirs!r}, the model's {ours!r}"
    if model.controls() != draft.controls() or model.eog() != draft.eog():
        return "other control tokens"
    return ""
