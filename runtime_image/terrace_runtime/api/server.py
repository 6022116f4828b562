"""A replica's life as a process: bind, load, serve, drain, and say why it ends.

Owns: uvicorn, signals, exit codes and reasons. Does not own: requests (``app``) or the engine.
HTTP is up before the model is loaded, so that probes get answers from the first moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn
import uvloop

from terrace_runtime.api.shortage import OutOfMemoryKills, memory_exit
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.selfcheck import check_build, check_projector
from terrace_runtime.contract import EXIT_BACKEND, EXIT_ENGINE
from terrace_runtime.engine.request import EngineError
from terrace_runtime.node.fitting import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from terrace_runtime.api.state import ServerState
    from terrace_runtime.contract import RuntimeConfig

_log = structlog.get_logger("terrace_runtime.server")
_WATCH_SECONDS: Final = 0.2
_SAMPLE_SECONDS: Final = 0.5
_LAST_WORDS_SECONDS: Final = 1.0
"""After the engine's death: time for answers to reach their clients and a probe to see red."""
_CLOSE_SECONDS: Final = 5
_IDLE_SECONDS: Final = 30
"""Ten times as long as the gateway keeps an idle connection: also one that was held up for seconds
never sends a request on a connection that we are about to close."""
_FAREWELL_SECONDS: Final = 1.0
"""Least time of a drain: who has not yet heard that we leave gets a 503 and no closed port."""


@dataclass(frozen=True)
class Ending:
    """Why the process ends."""

    code: int
    reason: str = ""


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers; ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def server_config(app: FastAPI) -> uvicorn.Config:
    """Settings of uvicorn: it logs no requests of its own and names itself to nobody."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        backlog=2048,
    )


def run_server(app: FastAPI, host: str, port: int) -> Ending:
    """Bind and serve to the end; raises OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family, backlog=2048) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(serve(app, listener))


async def serve(app: FastAPI, listener: socket.socket) -> Ending:
    """Serve ``app`` on a bound socket until SIGTERM, SIGINT or the engine's end."""
    state: ServerState = app.state.server
    server = QuietServer(server_config(app))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Whoever reads this may signal us: from now on that is a clean end.
    host, port = listener.getsockname()[:2]
    _log.info("listening", host=host, port=port)
    http = asyncio.create_task(server.serve(sockets=[listener]))
    meter = asyncio.create_task(_sample(state))
    try:
        ending = await _live(state, stop, http)
    finally:
        meter.cancel()
        server.should_exit = True
        await asyncio.gather(http, meter, return_exceptions=True)
        await state.close()
    _log.info("stopped", code=ending.code, reason=ending.reason)
    return ending


async def _live(state: ServerState, stop: asyncio.Event, http: asyncio.Task[None]) -> Ending:
    _log_node(state)
    _log.info("loading", model=state.config.model, path=state.config.model_path)
    kills = OutOfMemoryKills()
    loading = asyncio.create_task(state.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({loading, stopping, http}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return Ending(0, "stopped while loading")
        try:
            loading.result()
        except EngineError as error:
            return await _not_loaded(state, str(error), kills.count)
        _log.info("ready", build=state.build, note=state.template_note)
        for words in state.node.report.warnings:
            _log.warning("node", words=words)
        await _log_devices(state)
        # What starting made stays: no stream waits for a search for garbage among it.
        gc.collect()
        gc.freeze()
        while not (stopping.done() or http.done()):
            if state.engine.error:
                _log.error("engine failed", reason=state.engine.error)
                await asyncio.sleep(_LAST_WORDS_SECONDS)
                return _engine_ending(state, kills.count)
            await asyncio.wait({stopping, http}, timeout=_WATCH_SECONDS)
        if not stopping.done():
            return Ending(1, f"the HTTP server ended by itself: {http.exception() or 'no reason'}")
        _log.info("draining", seconds=state.config.drain_timeout_s)
        await asyncio.gather(state.drain(), asyncio.sleep(_FAREWELL_SECONDS))
        return Ending(0)
    finally:
        for task in (loading, stopping):
            task.cancel()
        await asyncio.gather(loading, stopping, return_exceptions=True)


async def _not_loaded(state: ServerState, why: str, num_kills: int) -> Ending:
    words = f"the model cannot be loaded: {why}"
    if code := memory_exit(why, num_kills):
        return Ending(code, f"{words}; {_memory_words(state)}")
    return Ending(EXIT_BACKEND, f"{words}; {await _verdict(state.config, why)}")


def _engine_ending(state: ServerState, num_kills: int) -> Ending:
    words = f"the engine failed: {state.engine.error}"
    if code := memory_exit(state.engine.error, num_kills):
        return Ending(code, f"{words}; {_memory_words(state)}")
    return Ending(EXIT_ENGINE, words)


def _log_node(state: ServerState) -> None:
    found = state.node.report
    _log.info(
        "node",
        cpus=found.cpu.usable,
        cores=found.cpu.cores,
        cpu_quota=found.cpu.quota,
        cgroups=found.cgroups,
        memory_limit_bytes=found.memory.limit_bytes,
        node_memory_bytes=found.node_memory_bytes,
        numa_nodes=len(found.numa),
        shared_memory_bytes=found.shared_memory_bytes,
        huge_pages=found.huge_pages,
        transparent_huge_pages=found.transparent_huge_pages,
    )


async def _log_devices(state: ServerState) -> None:
    await state.devices.refresh()
    for one in state.devices.samples:
        _log.info("device", id=one.id, name=one.name, vendor=one.vendor)
    if not state.devices.samples:
        _log.info("no device", failures=state.devices.failures)


def _memory_words(state: ServerState) -> str:
    """Limit and peak, for whoever has to choose another limit."""
    memory = state.node.report.memory
    limit = "none that can be seen" if memory.limit_bytes is None else shown(memory.limit_bytes)
    peak = shown(max(state.memory.peak_bytes, memory.peak_bytes or 0))
    return f"the container's memory limit: {limit}, the most it held: {peak}"


async def _verdict(config: RuntimeConfig, why: str) -> str:
    """Is llama.cpp itself at fault, a projector, or this model? Time that only a failure pays."""
    try:
        await asyncio.to_thread(check_build)
        if config.projector_path and config.projector_path not in why:
            await asyncio.to_thread(check_projector, config)
    except BackendError as error:
        return str(error)
    return "llama.cpp itself works here: its check decoded a Q8_0 batch"


async def _sample(state: ServerState) -> None:
    while True:
        state.memory.sample()
        await asyncio.sleep(_SAMPLE_SECONDS)
