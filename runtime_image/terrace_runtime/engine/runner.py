"""The threads around an EngineCore: one that steps, one that tokenizes.

Owns: both threads, their inboxes, and turning any exception into one Failed event. Does not own:
where events go (``emit``: a callback of ``inprocess.py`` or a socket of ``child.py``). Next:
``core.py`` does the work.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from terrace_runtime.backend import BackendError
from terrace_runtime.engine.calibration import calibrate
from terrace_runtime.engine.core import EngineCore
from terrace_runtime.engine.costs import StepCosts
from terrace_runtime.engine.embedding import EmbeddingCore
from terrace_runtime.engine.encoder_decoder import EncoderDecoderCore
from terrace_runtime.engine.image_encoder import EncodingThread
from terrace_runtime.engine.image_stage import ImageStage
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.messages import (
    Abort,
    Event,
    Failed,
    Ready,
    Rejected,
    Reported,
    Stepped,
    Submit,
)
from terrace_runtime.engine.request import InvalidRequestError, ModelInfo
from terrace_runtime.engine.sampling import MAX_SEED
from terrace_runtime.engine.speculation import speculator
from terrace_runtime.engine.tiers import Tiers

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.backend import Backend
    from terrace_runtime.backend.projector import Projector
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.messages import Command
    from terrace_runtime.engine.sequence import Sequence

Core = EngineCore | EmbeddingCore
_LOG = logging.getLogger(__name__)
_FLUSH_S = 3.0
"""For KV blocks on their way to the disk when the engine stops."""
_BLOCKED_S = 0.05
_WRITING_S = 0.2
_REPORT_S = 0.5
_STATS_S = 0.05
"""Steps without outputs are told of so seldom: each telling wakes the server."""
_INTAKE_STACK_BYTES = 64 * 1024 * 1024
"""std::regex, which splits text for some vocabularies, recurses once per character."""


class EngineRunner:
    """Loads a backend and serves until ``stop``; all methods may be called from any thread."""

    def __init__(
        self,
        backend: Backend,
        config: RuntimeConfig,
        emit: Callable[[Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        seeds: random.Random | None = None,
    ) -> None:
        """``emit`` gets every event, on the thread that made it."""
        self._backend = backend
        self._config = config
        self._emit = emit
        self._clock = clock
        self._seeds = seeds or random.Random()  # noqa: S311 - sampling needs no secrets
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._wake = threading.Condition()
        self._inbox: list[Sequence | str] = []
        self._is_stopping = False
        self._has_blocks = False
        self._report_at = self._stepped_at = 0.0
        self._intake: threading.Thread | None = None
        self._images: ImageStage | None = None
        self._engine = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start loading; Ready or Failed follows."""
        self._engine.start()

    def send(self, command: Command) -> None:
        """Obey ``command`` in order; a request's outputs or its Rejected follow."""
        self._commands.put(command)

    def stop(self, timeout_s: float) -> bool:
        """End everybody with ABORT, free the backend; False: a step did not end in time."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._engine.join(timeout_s)
        return not self._engine.is_alive()

    # The engine's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            core = self._load()
            self._serve(core)
        except BackendError as error:
            self._emit(Failed(str(error)))
        # Whatever it is, everybody who waits must hear of it: this thread is the only one.
        except Exception as error:  # noqa: BLE001
            _LOG.exception("the engine failed")
            self._emit(Failed(f"{type(error).__name__} in the engine: {error}"))
        finally:
            self._commands.put(None)
            if self._intake is not None:
                self._intake.join()
            if self._images is not None:
                self._images.close()
            self._backend.close()

    def _load(self) -> Core:
        self._backend.load(self._config)
        self._tiers = Tiers(
            self._backend, self._config, clock=self._clock, on_ready=self._blocks_came
        )
        core = self._make_core()
        self._intake = _thread_with_stack(lambda: self._take_in(core), _INTAKE_STACK_BYTES)
        self._emit(Ready(_model_info(self._backend, self._config, self._tiers)))
        return core

    def _make_core(self) -> Core:
        found = self._backend.info.capabilities
        if self._backend.projector is not None and not _takes_images(self._backend):
            raise BackendError(
                "projector_path: this model does not answer text with text as a decoder does, "
                "so it can take no images; leave spec.projector out"
            )
        if found.can_embed:
            return EmbeddingCore(self._backend, self._config, clock=self._clock)
        costs = StepCosts(self._config.prefill_tokens)
        if found.model_class == "encoder-decoder":
            return EncoderDecoderCore(
                self._backend,
                self._config.model_copy(update={"parallel": 1}),
                self._tiers,
                clock=self._clock,
                draw_seed=self._draw_seed,
                costs=costs,
            )
        calibrate(self._backend, self._config, costs, self._clock)
        if self._backend.projector is not None:
            encoder = EncodingThread(self._backend.projector, self._blocks_came)
            self._images = ImageStage(self._backend, encoder)
        return EngineCore(
            self._backend,
            self._config,
            self._tiers,
            clock=self._clock,
            draw_seed=self._draw_seed,
            costs=costs,
            speculator=speculator(self._config, self._backend, costs, self._clock),
            images=self._images,
        )

    def _draw_seed(self) -> int:
        return self._seeds.randrange(MAX_SEED + 1)

    def _serve(self, core: Core) -> None:
        while True:
            inbox, is_stopping = self._next(core)
            for item in inbox:
                if isinstance(item, str):
                    core.abort(item)
                else:
                    core.add(item)
            if is_stopping:
                core.abort_all()
            if core.has_work:
                outputs = core.step()
                now = self._clock()
                if outputs or now >= self._stepped_at + _STATS_S:
                    self._stepped_at = now
                    self._emit(Stepped(outputs, core.stats))
            if is_stopping:
                while core.chore():
                    pass
                self._tiers.close(_FLUSH_S)
                return
            self._report(core)

    def _next(self, core: Core) -> tuple[list[Sequence | str], bool]:
        """What came in; waits for it, or for blocks from disk, and does chores while idle."""
        while True:
            with self._wake:
                is_waited_for = core.is_blocked and not self._has_blocks
                if not self._inbox and not self._is_stopping and is_waited_for:
                    # A deadline may pass meanwhile, and nobody else tells of that.
                    self._wake.wait(_BLOCKED_S)
                if self._inbox or self._is_stopping or core.has_work:
                    inbox, self._inbox = self._inbox, []
                    self._has_blocks = False
                    return inbox, self._is_stopping
            self._tiers.poll()
            if core.chore():
                continue
            self._report(core, is_idle=True)
            with self._wake:
                # The report tells what is on disk, so it is made again when the writing is over.
                self._wake.wait_for(self._has_news, _WRITING_S if self._tiers.is_writing else None)
                self._has_blocks = False

    def _has_news(self) -> bool:
        return bool(self._inbox) or self._is_stopping or self._has_blocks

    def _blocks_came(self) -> None:
        """On the thread of the disk tier, or of the image encoder."""
        with self._wake:
            self._has_blocks = True
            self._wake.notify()

    def _report(self, core: Core, *, is_idle: bool = False) -> None:
        """Tell of tiers and sequences, seldom: reports are read seldom, steps are many."""
        now = self._clock()
        if is_idle or now >= self._report_at:
            self._report_at = now + _REPORT_S
            self._emit(Reported(core.report(now)))

    # The intake's thread --------------------------------------------------------------------------

    def _take_in(self, core: Core) -> None:
        while (command := self._commands.get()) is not None:
            match command:
                case Abort(request_id):
                    self._put(request_id)
                case Submit(request):
                    try:
                        sequence = make_sequence(request, self._backend, core.table, self._config)
                    except InvalidRequestError as error:
                        self._emit(Rejected(request.id, str(error), error.param))
                    except Exception as error:  # noqa: BLE001 - a request must end, whatever it is
                        _LOG.exception("tokenizing failed")
                        self._emit(Rejected(request.id, f"cannot be tokenized: {error}", "prompt"))
                    else:
                        core.prepare(sequence)
                        self._put(sequence)

    def _put(self, item: Sequence | str) -> None:
        with self._wake:
            self._inbox.append(item)
            self._wake.notify()


def _thread_with_stack(target: Callable[[], None], stack_bytes: int) -> threading.Thread:
    """Start a daemon thread with a stack of its own size (only touched pages cost memory)."""
    before = threading.stack_size(stack_bytes)
    try:
        thread = threading.Thread(target=target, name="intake", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread


def _model_info(backend: Backend, config: RuntimeConfig, tiers: Tiers) -> ModelInfo:
    info, projector = backend.info, backend.projector
    return ModelInfo(
        context_tokens=config.context_tokens,
        parallel=config.parallel,
        vocabulary=info.vocabulary,
        threads=info.threads,
        chat_template=info.chat_template,
        bos=info.bos,
        eos=info.eos,
        special_tokens=info.special_tokens,
        build=info.build,
        weights_bytes=info.weights_bytes,
        kv_bytes=info.kv_bytes,
        compute_bytes=info.compute_bytes,
        devices=info.devices,
        capabilities=info.capabilities.model_copy(update={"takes_images": projector is not None}),
        projector_bytes=0 if projector is None else _together(projector),
        embedding_width=info.embedding_width,
        tier_bytes=0 if tiers.store is None else tiers.store.touched_bytes,
    )


def _takes_images(backend: Backend) -> bool:
    found = backend.info.capabilities
    is_able = found.model_class == "decoder" and not found.can_embed
    return is_able and backend.projector is not None


def _together(projector: Projector) -> int | None:
    """Weights and graph; None where the backend does not tell."""
    sizes = (projector.weight_bytes, projector.compute_bytes)
    return None if None in sizes else sum(size or 0 for size in sizes)
