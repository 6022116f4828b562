"""What both shapes of EngineClient share: the table of open requests and everything around it.

Owns: admission (the bounded queue), each request's stream, the watchdog, drain. Does not own: how
commands reach the engine (``inprocess.py``, ``process.py``). All of it runs on the event loop's
thread. Next: ``api`` reads the streams.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from terrace_runtime.contract import HELD_PIXEL_BYTES, EngineReport
from terrace_runtime.engine.intake import check_class, check_request
from terrace_runtime.engine.messages import (
    Abort,
    Failed,
    Ready,
    Rejected,
    Reported,
    Stepped,
    Submit,
)
from terrace_runtime.engine.request import (
    EngineError,
    EngineStats,
    FinishReason,
    InvalidRequestError,
    ModelInfo,
    QueueFullError,
)
from terrace_runtime.engine.stream import OutputStream

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.messages import Command, Event
    from terrace_runtime.engine.request import Request, RequestOutput

_MAX_RETRY_AFTER_S = 120
_WATCHDOG_TICKS = 4
"""Looks per step_timeout_s; a stalled event loop counts as one look, not as a stalled engine."""
_ABORT_GRACE_S = 5.0


class EngineFrontend(ABC):
    """An EngineClient without its transport."""

    def __init__(self, config: RuntimeConfig) -> None:
        """``config`` bounds the queue and the length of a step."""
        self._config = config
        self._streams: dict[str, OutputStream] = {}
        self._stats = EngineStats()
        self._report = EngineReport()
        self._error = ""
        self._info: ModelInfo | None = None
        self._ready: asyncio.Future[None] | None = None
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._dead = asyncio.Event()
        self._started_at: dict[str, float] = {}
        self._pixels: dict[str, int] = {}
        """Bytes of images of the open requests that have any: the engine holds them to the end."""
        self._answer_s = 0.0
        """From submit to end, a moving average over the last requests."""
        self._slot_s = 0.0
        """The same from when they began, of those that were answered."""
        self._events = 0
        """How many came; the watchdog sees by it that the engine lives."""
        self._watchdog: asyncio.Task[None] | None = None

    # The port -------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """Facts of the loaded model."""
        if self._info is None:
            raise EngineError(self._error or "the engine has not started")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The last step's picture with the requests that are open now."""
        running = min(self._stats.running, len(self._streams))
        return replace(self._stats, running=running, waiting=len(self._streams) - running)

    @property
    def report(self) -> EngineReport:
        """Tiers, sequences and speeds, at most a second old."""
        return self._report

    @property
    def error(self) -> str:
        """Why the engine is dead; empty while it lives."""
        return self._error

    async def until_dead(self) -> str:
        """Wait until the engine is dead; gives ``error``. A server ends its process then."""
        await self._dead.wait()
        return self._error

    async def start(self) -> None:
        """Load the model and run. Raises EngineError with the reason."""
        self._ready = asyncio.get_running_loop().create_future()
        try:
            await self._open()
            await self._ready
        except BaseException:
            await self._shut()
            raise
        self._watchdog = asyncio.create_task(self._watch(), name="engine watchdog")

    def submit(self, request: Request) -> OutputStream:
        """Queue ``request``; see the port for what it raises."""
        self._refuse_new_work()
        check_class(request, self.info.capabilities)
        check_request(request, self.info.vocabulary, self._config)
        if request.id in self._streams:
            raise InvalidRequestError(f"a request with the id {request.id} runs already", "id")
        self._refuse_long_waits()
        self._refuse_many_pixels(request)
        stream = OutputStream(request.id, self.abort)
        self._streams[request.id] = stream
        if request.pixel_bytes:
            self._pixels[request.id] = request.pixel_bytes
        self._started_at[request.id] = asyncio.get_running_loop().time()
        self._idle.clear()
        self._send(Submit(request))
        return stream

    def abort(self, request_id: str) -> None:
        """End a request with ABORT; unknown ids are ignored."""
        if request_id in self._streams and not self._error:
            self._send(Abort(request_id))

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, let the others finish, abort the rest after ``timeout_s``."""
        self._is_draining = True
        if not await self._is_idle_within(timeout_s):
            for request_id in list(self._streams):
                self.abort(request_id)
            if not await self._is_idle_within(_ABORT_GRACE_S):
                self._end_all(FinishReason.ABORT)

    async def close(self) -> None:
        """Stop the engine; requests that still run end with ABORT. Safe to call twice."""
        self._is_draining = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
            self._watchdog = None
        self._end_all(FinishReason.ABORT)
        await self._shut()

    # What a shape brings --------------------------------------------------------------------------

    @abstractmethod
    async def _open(self) -> None:
        """Start the engine; Ready or Failed follows through ``_receive``."""

    @abstractmethod
    async def _shut(self) -> None:
        """Stop the engine, whatever its state; safe to call twice."""

    @abstractmethod
    def _send(self, command: Command) -> None:
        """Pass a command on, never blocking."""

    @abstractmethod
    def _give_up(self) -> None:
        """The engine hangs in a step: end it if it can be ended."""

    # Events ---------------------------------------------------------------------------------------

    def _receive(self, event: Event) -> None:
        """Handle one event of the engine; on the event loop's thread."""
        self._events += 1
        match event:
            case Stepped(outputs, stats):
                self._stats = stats
                for output in outputs:
                    self._pass_on(output)
            case Rejected(request_id, message, param):
                self._reject(request_id, InvalidRequestError(message, param))
            case Ready(info):
                self._info = info
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case Failed(reason):
                self._fail(reason)
            case Reported(report):
                self._report = report

    def _pass_on(self, output: RequestOutput) -> None:
        stream = self._streams.get(output.id)
        if stream is None:
            return
        if output.finish is not None and _is_answered(output, stream):
            self._measure(output)
        stream.put(output)
        if output.finish is not None:
            self._forget(output.id)

    def _reject(self, request_id: str, error: InvalidRequestError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.refuse(error)
            self._forget(request_id)

    def _fail(self, reason: str) -> None:
        """Health is red from here on; everybody ends with ERROR. The first reason stays."""
        if self._error:
            return
        self._error = reason
        self._dead.set()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineError(reason))
        self._end_all(FinishReason.ERROR, reason)

    def _end_all(self, finish: FinishReason, error: str = "") -> None:
        for request_id, stream in list(self._streams.items()):
            stream.end(finish, error)
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        del self._streams[request_id]
        self._pixels.pop(request_id, None)
        seconds = asyncio.get_running_loop().time() - self._started_at.pop(request_id)
        self._answer_s = _moved(self._answer_s, seconds)
        if not self._streams:
            self._idle.set()

    def _measure(self, last: RequestOutput) -> None:
        """Its own wait does not count, or a queue would seem the longer the longer it is."""
        seconds = asyncio.get_running_loop().time() - self._started_at[last.id]
        self._slot_s = _moved(self._slot_s, max(0.0, seconds - last.queued_s))

    def _refuse_new_work(self) -> None:
        if self._error:
            raise EngineError(self._error)
        if self._is_draining:
            raise EngineError("the server is shutting down")

    def _refuse_long_waits(self) -> None:
        """429 before the queue is so long that those inside it suffer."""
        num_waiting = max(0, len(self._streams) - self._config.parallel)
        is_busy = len(self._streams) >= self._config.parallel
        # Slots free themselves at this pace, so this is when the next in line would begin.
        wait_s = (num_waiting + 1) * self._slot_s / self._config.parallel if is_busy else 0.0
        is_full = len(self._streams) - self._config.parallel >= self._config.max_waiting
        if is_full or wait_s > self._config.max_wait_s:
            raise QueueFullError(num_waiting, self._retry_after_s(), wait_s)

    def _refuse_many_pixels(self, request: Request) -> None:
        if request.pixel_bytes and (
            sum(self._pixels.values()) + request.pixel_bytes > HELD_PIXEL_BYTES
        ):
            why = f"the images of {len(self._pixels)} requests under way fill the room for pixels"
            raise QueueFullError(len(self._pixels), self._retry_after_s(), why=why)

    def _retry_after_s(self) -> int:
        """Seconds in which the queue of now is served: what requests took lately, waiting too."""
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._answer_s)))

    async def _is_idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _watch(self) -> None:
        """Turn red when requests are open and no step ends within its bound."""
        bound_s = self._config.step_timeout_s
        seen, quiet = -1, 0
        while not self._error:
            await asyncio.sleep(bound_s / _WATCHDOG_TICKS)
            is_quiet = bool(self._streams) and seen == self._events
            quiet = quiet + 1 if is_quiet else 0
            seen = self._events
            if quiet > _WATCHDOG_TICKS:
                self._fail(f"the engine hangs: a step took longer than {bound_s:g} s")
                self._give_up()


def _is_answered(last: RequestOutput, stream: OutputStream) -> bool:
    """Whoever left while it waited says nothing about how long an answer takes."""
    return last.finish in {FinishReason.STOP, FinishReason.LENGTH} or stream.has_begun


def _moved(average: float, seconds: float) -> float:
    weight = 0.2 if average else 1.0
    return average + weight * (seconds - average)
