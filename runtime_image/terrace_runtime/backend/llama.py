"""llama.cpp behind the Backend port; the only file of Terrace that imports llama_cpp.

Owns: loading, decode, logits, and the checks that keep an abort (GGML_ASSERT ends the process) from
being reachable. Does not own: what to decode; cells (``llama_cells.py``). Measured facts are in
docs/adr/0003. Next: ``vocabulary.py`` reads texts, ``loadlog.py`` the sizes of buffers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as lib
import numpy as np
from typing_extensions import override

from terrace_runtime.backend import (
    DECODE_OK,
    BackendError,
    BackendInfo,
    Drafter,
    SamplerChain,
    SamplerSettings,
)
from terrace_runtime.backend.adapters import Adapters
from terrace_runtime.backend.binding import LLAMA_COMMIT, Functions, check_binding, watch_aborts
from terrace_runtime.backend.capabilities import kind_of, probe
from terrace_runtime.backend.chain import LlamaSampler, SamplerCalls
from terrace_runtime.backend.context import context_params, other_layout
from terrace_runtime.backend.cpu import usable_threads
from terrace_runtime.backend.devices import Devices
from terrace_runtime.backend.dispatch import start
from terrace_runtime.backend.draft import LlamaDrafter, draft_file
from terrace_runtime.backend.embedding import (
    embedding_width,
    evaluation,
    fit_context,
    read_embedding,
)
from terrace_runtime.backend.embeddings import EmbeddingRows
from terrace_runtime.backend.grammar import Grammars
from terrace_runtime.backend.llama_cells import LlamaCells
from terrace_runtime.backend.llama_images import LlamaImages, open_alone
from terrace_runtime.backend.loadlog import LoadLog, LogTap
from terrace_runtime.backend.offload import ModelShape, Placement, check_attention, check_context
from terrace_runtime.backend.rows import LogitRows, RawBatch
from terrace_runtime.backend.shortlist import LlamaShortlist, is_worth_trying
from terrace_runtime.backend.vocabulary import Vocabulary, by_length
from terrace_runtime.contract import RuntimeConfig, pod_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from terrace_runtime.backend.batch import Batch

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ of the pinned build."""
_WARM_UP_TOKENS = 32
_C = Functions(lib)
_LOG = LogTap(lib)


class LlamaBackend(LlamaCells, LlamaImages):
    """One model in one context; see the port for the contract of each method."""

    def __init__(self) -> None:
        super().__init__(lib, _C)
        self._model: Any = None
        self._samplers: SamplerCalls | None = None
        self._drafter: LlamaDrafter | None = None
        self._shortlist: LlamaShortlist | None = None
        self._adapters = Adapters(lib, ())

    @property
    @override
    def info(self) -> BackendInfo:
        return self._info

    @property
    @override
    def batch(self) -> Batch:
        return self._raw.rows

    @property
    @override
    def drafter(self) -> Drafter | None:
        return self._drafter

    @property
    @override
    def shortlist(self) -> LlamaShortlist | None:
        return self._shortlist

    # Loading --------------------------------------------------------------------------------------

    @override
    def load(self, config: RuntimeConfig) -> None:
        check_binding(lib)
        path = pod_path(config.model_path)
        if not path.is_file():
            raise BackendError(f"there is no model file at {path}: fetch it again")
        if config.speculation.mode == "draft":
            draft_file(config)
        if config.parallel >= MAX_SEQUENCES:
            raise BackendError(f"parallel must be under {MAX_SEQUENCES}, not {config.parallel}")
        log = LoadLog()
        _LOG.install(log)
        start(lib)
        self._config, self._threads = config, (threads := usable_threads(config.threads))
        try:
            self._load_model(path, config, log)
            self._open_context(config, log)
            self._warm_up()
            self._load_drafter(config, threads)
            self._open_projector(lib, config, self._model, threads, _LOG)
            if self._kind.model_class == "decoder" and not self._kind.pooling:
                shortlist = LlamaShortlist(lib, _C.find, self._context, config.parallel)
                if is_worth_trying(config, self._devices, self._vocabulary.size):
                    self._shortlist = shortlist.tried_out(self, config)
            self._info = self._read_info(threads, log)
            self._samplers = SamplerCalls(lib, _C.find, self._vocabulary, self._shortlist)
            self._samplers.context = self._context
            self._grammars = Grammars(self._info, self._tokens_of)
            self._grammars.warm_up()
        except BackendError:
            self.close()
            raise

    def _load_model(self, path: Path, config: RuntimeConfig, log: LoadLog) -> None:
        self._devices = Devices(_C.library)
        placement = Placement(config.offload, self._devices, path.stat().st_size)
        params = lib.llama_model_default_params()
        placement.fill(params, lib)
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            why = log.complaint or "it gave no reason"
            raise BackendError(f"llama.cpp cannot load {path}: {why}")
        placement.check_loaded(log)
        self._kind = kind_of(lib, self._model)
        self._evaluate = evaluation(lib, self._model, self._kind, _C.decode)
        check_context(config.context_tokens, lib.llama_model_n_ctx_train(self._model))
        shape = ModelShape(lib, self._model)
        check_attention(config, self._devices, shape)
        self._adapters = Adapters(lib, config.adapters)
        self._adapters.load(self._model, shape.architecture, log)
        self._vocabulary = Vocabulary(lib, lib.llama_model_get_vocab(self._model))

    def _open_context(self, config: RuntimeConfig, log: LoadLog) -> None:
        params = context_params(lib, config, self._threads)
        has_scratch = fit_context(params, config, self._kind, lib.llama_model_n_head(self._model))
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            why = log.complaint or "it gave no reason; is the memory limit too low?"
            raise BackendError(f"llama.cpp cannot open a context: {why}")
        self._hold(context, params, has_scratch=has_scratch)
        self._raw = RawBatch(lib, max(config.batch_tokens, params.n_batch))
        self._max_outputs = params.n_outputs_max or params.n_batch
        self._logits = LogitRows(_C.get_logits, self._max_outputs, self._vocabulary.size)
        if self._kind.model_class == "decoder" and not self._kind.pooling:
            self._rows = EmbeddingRows(lib, _C.decode, context)

    @override
    def reopen(self, *, unified: bool) -> None:
        # Two contexts at once would need twice the cells' memory.
        self._free_context()
        log, model_log = LoadLog(), _LOG.sink
        _LOG.install(log)
        try:
            self._open_context(other_layout(self._config, unified=unified), log)
        finally:
            _LOG.install(model_log)
        assert self._samplers is not None
        self._samplers.context = self._context
        if self._adapters.current:
            self._adapters.use(self._context, self._adapters.current)

    def _load_drafter(self, config: RuntimeConfig, threads: int) -> None:
        if config.speculation.mode != "draft":
            return
        log, model_log = LoadLog(), _LOG.sink
        _LOG.install(log)
        self._drafter = LlamaDrafter(lib, _C.decode, _C.get_logits, log)
        self._drafter.load(config, threads, self._vocabulary)
        _LOG.install(model_log)

    def _read_info(self, threads: int, log: LoadLog) -> BackendInfo:
        vocabulary = self._vocabulary
        controls = vocabulary.controls()
        template = lib.llama_model_chat_template(self._model, None)
        draft = LoadLog() if self._drafter is None else self._drafter.log
        image_weights, image_buffers = self._projector_bytes()
        return BackendInfo(
            vocabulary=vocabulary.size,
            threads=threads,
            capabilities=probe(lib, self._model, self._context, self._kind, self).model_copy(
                update={
                    "has_devices": bool(self._devices.gpus),
                    "device_candidates": self._shortlist.size if self._shortlist else 0,
                }
            ),
            eog=vocabulary.eog(),
            pieces=vocabulary.pieces(),
            chat_template=(template or b"").decode("utf-8", "replace"),
            bos=vocabulary.text(vocabulary.bos),
            eos=vocabulary.text(lib.llama_vocab_eos(vocabulary.pointer)),
            special_tokens=by_length(controls.values()),
            controls=controls,
            build=f"llama.cpp-{LLAMA_COMMIT}",
            decoder_start=int(lib.llama_model_decoder_start_token(self._model)),
            embedding_width=embedding_width(lib, self._model, self._kind),
            tail=vocabulary.tail(),
            weights_bytes=_together(log.weights_bytes, draft.weights_bytes, image_weights),
            kv_bytes=_together(log.kv_bytes, draft.kv_bytes),
            compute_bytes=_together(log.compute_bytes, draft.compute_bytes, image_buffers),
            devices=self._devices.report(log),
            adapter_switch_s=self._adapters.warm_up(self),
        )

    def _warm_up(self) -> None:
        """Decode once, so that a build that does not fit this CPU dies here and not in service."""
        count = min(_WARM_UP_TOKENS, self.batch.capacity)
        self.batch.clear()
        if self._kind.model_class == "encoder-decoder":
            self.encode([0] * count)
        self.batch.extend([0] * count, 0, 0, outputs=count if self._kind.pooling else 1)
        code = self.decode()
        read = self.logits if not self._kind.pooling else lambda: self.embedding(0)
        if code != DECODE_OK or not np.isfinite(read()).all():
            why = f"code {code}; {_LOG.sink.complaint}" if code else "its results are not numbers"
            raise BackendError(f"llama.cpp cannot decode its first batch: {why}")
        self.seq_rm(0)
        self.batch.clear()

    # Serving --------------------------------------------------------------------------------------

    @override
    def tokenize(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        return self._vocabulary.tokenize(text, special=special, add_bos=add_bos)

    def _tokens_of(self, text: str) -> list[int]:
        return self.tokenize(text, special=False, add_bos=False)

    @override
    def decode(self) -> int:
        batch = self.batch
        size = batch.size
        slots = batch.sequences[:size]
        # Each of these would be a GGML_ASSERT, and that ends the process.
        if not 0 < size <= batch.capacity or batch.num_outputs > self._max_outputs:
            raise BackendError(f"bad batch: {size} tokens, {batch.num_outputs} outputs")
        slots_end = self._num_slots if self._scratch is None else self._scratch
        if slots.min() < 0 or slots.max() >= slots_end:
            raise BackendError(f"bad batch: a sequence id is not in 0..{slots_end - 1}")
        placed = self._positions
        raw = self._raw.shifted(placed.shifts) if placed.is_shifted else self._raw.raw
        return int(self._evaluate(self._context, raw))

    @override
    def encode(self, tokens: Sequence[int]) -> None:
        self.batch.clear()
        self.batch.extend(tokens, 0, 0, outputs=len(tokens))
        code = lib.llama_encode(self._context, self._raw.raw)
        self.batch.clear()
        if code != DECODE_OK:
            raise BackendError(f"llama.cpp cannot encode the prompt: code {code}")

    @override
    def embedding(self, slot: int) -> NDArray[np.float32]:
        self._check_slot(slot)
        return read_embedding(lib, self._model, self._context, slot)

    @override
    def logits(self) -> NDArray[np.float32]:
        return self._logits.read(self._context, self.batch.num_outputs)

    @override
    def prepare(self, settings: SamplerSettings) -> None:
        assert self._samplers is not None
        self._samplers.prepare(settings)
        if settings.grammar is not None:
            self._grammars.compile(settings.grammar)

    @override
    def sampler(self, settings: SamplerSettings, prompt: Sequence[int]) -> SamplerChain:
        assert self._samplers is not None
        chain = LlamaSampler(self._samplers, settings, prompt)
        return self._grammars.hold(chain, settings.grammar)

    @override
    def use_adapter(self, name: str) -> None:
        self._adapters.use(self._context, name)

    @override
    def on_abort(self, callback: Callable[[str], None]) -> None:
        watch_aborts(lib, lambda words: callback(f"{self._doing}{words}"))

    @override
    def close(self) -> None:
        if self._projector is not None:
            self._projector.close()
        if self._drafter is not None:
            self._drafter.close()
        if self._samplers is not None:
            self._samplers.close()
        self._free_context()
        if self._shortlist is not None:
            self._shortlist.free()
        if self._model:
            self._adapters.close()
            lib.llama_model_free(self._model)
        self._model = None


def _together(model_bytes: int | None, *others: int | None) -> int | None:
    """Memory of the model, its draft and projector; None where the backend does not tell."""
    return model_bytes if model_bytes is None else model_bytes + sum(one or 0 for one in others)


def try_projector(model_path: Path, path: Path) -> None:
    """Open a projector beside a model's vocabulary and encode an image; raises BackendError."""
    start(lib)
    open_alone(lib, _LOG, model_path, path)
