"""The engine's own process: frames in, frames out, over one inherited socket.

Owns: the child's side of the socket and dying with its parent. Does not own: the engine
(``runner.py``) or the parent's side (``process.py``). The first frame says what to run.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from terrace_runtime.contract import EXIT_BACKEND, RuntimeConfig
from terrace_runtime.engine.messages import (
    Failed,
    FrameReader,
    Ready,
    decode_commands,
    encode_event,
)
from terrace_runtime.engine.runner import EngineRunner
from terrace_runtime.logs import flush_log, log_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from terrace_runtime.backend import Backend
    from terrace_runtime.engine.messages import Event

_READ_BYTES = 256 * 1024
_STOP_S = 4.0


def main(fd: int) -> int:
    """Serve the engine on the socket ``fd`` until the parent closes it; returns an exit code."""
    # Ctrl-C reaches the whole process group. When to end is the parent's decision: it drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_in_child("engine")
    parent = socket.socket(fileno=fd)
    lock = threading.Lock()

    def emit(event: Event) -> None:
        if isinstance(event, Ready):
            # What loading made stays: no step waits for a search for garbage among it.
            gc.collect()
            gc.freeze()
        data = encode_event(event)
        # When the parent is gone the frames below end too, and with them this process.
        with suppress(OSError), lock:
            parent.sendall(data)

    frames = _frames(parent)
    start = next(frames, None)
    if start is None:
        return 0
    config = RuntimeConfig.model_validate(start["config"])
    try:
        backend = _backend(start["backend"], start["arguments"])
    except Exception as error:  # noqa: BLE001 - a library that does not load has many ways to say so
        emit(Failed(f"the backend {start['backend']} cannot be imported: {error}"))
        return EXIT_BACKEND
    backend.on_abort(lambda words: emit(Failed(f"llama.cpp aborted: {words}")))
    runner = EngineRunner(backend, config, emit)
    runner.start()
    raw: list[bytes] = []
    for value in frames:
        if isinstance(value, bytes):
            raw.append(value)
            continue
        for command in decode_commands(value, raw):
            runner.send(command)
        raw.clear()
    # Nobody listens any more. KV blocks on their way to the disk get a moment; a step may last
    # long, so whoever does not stop in time is left.
    runner.stop(_STOP_S)
    flush_log()
    os._exit(0)


def _frames(parent: socket.socket) -> Iterator[Any]:
    reader = FrameReader()
    while data := _receive(parent):
        yield from reader.feed(data)


def _receive(parent: socket.socket) -> bytes:
    try:
        return parent.recv(_READ_BYTES)
    except OSError:
        return b""


def _backend(path: str, arguments: dict[str, Any]) -> Backend:
    """The backend that the parent names as ``module:class``."""
    module, _, name = path.partition(":")
    backend: Backend = getattr(import_module(module), name)(**arguments)
    return backend
