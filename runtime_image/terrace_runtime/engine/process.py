"""EngineClient, shape 2: the engine in a child process.

Owns: the child's life and the parent's side of the socket. Does not own: the engine or the table
of requests (``frontend.py``). An abort or a kill in the child is an event here: every request ends
with its reason and health turns red. Next: ``child.py`` is the other side.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

from terrace_runtime.backend.selfcheck import epitaph
from terrace_runtime.engine.frontend import EngineFrontend
from terrace_runtime.engine.messages import FrameReader, decode_event, encode_commands, frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.messages import Command
    from terrace_runtime.logs import ChildLog

LLAMA_BACKEND = "terrace_runtime.backend.llama:LlamaBackend"
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
"""glibc asks the kernel for huge pages for large allocations: repacked weights, cells, buffers."""
_EXIT_S = 6.0
"""For the child to put its KV blocks on the disk and go."""
_LAST_WORDS_S = 5.0
"""For what it said last to reach the log, which takes so long only where the log itself is slow."""


class ChildEngine(EngineFrontend):
    """See the port, ``client.EngineClient``."""

    def __init__(
        self,
        config: RuntimeConfig,
        backend: str = LLAMA_BACKEND,
        arguments: Mapping[str, object] | None = None,
        log: ChildLog | None = None,
    ) -> None:
        """``backend`` is ``module:class``, made in the child with ``arguments`` (JSON).

        ``log`` reads what the child says; without one it shares our stderr.
        """
        super().__init__(config)
        self._start_frame = frame(
            {
                "config": config.model_dump(mode="json"),
                "backend": backend,
                "arguments": dict(arguments or {}),
            }
        )
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._commands: list[Command] = []
        self._burial: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._process.pid if self._process is not None else None

    async def _open(self) -> None:
        ours, theirs = socket.socketpair()
        said = self._log.pipe() if self._log is not None else nullcontext()
        with theirs, said as stderr:
            command = [sys.executable, "-m", "terrace_runtime", "engine", str(theirs.fileno())]
            # No shell, no input of anybody's; the interpreter is the one that runs us. The
            # loop need not reap it as a child of asyncio's: the socket's end tells of its death.
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=child_environment(os.environ),
            )
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: _Link(self), sock=ours)
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._start_frame)

    def _send(self, command: Command) -> None:
        if not self._commands:
            asyncio.get_running_loop().call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        """All commands of one turn of the event loop in one frame."""
        commands, self._commands = self._commands, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_commands(commands))

    def lost(self) -> None:
        """The child closed its end: it is dead or dying."""
        if self._process is not None and self._burial is None:
            self._burial = asyncio.get_running_loop().create_task(self._bury(self._process))

    async def _bury(self, process: subprocess.Popen[bytes]) -> None:
        why = f"the engine process {epitaph(await asyncio.to_thread(_reap, process))}"
        if self._log is not None:
            await asyncio.to_thread(self._log.join, _LAST_WORDS_S)
            why += f" ({self._log.last_words})" if self._log.last_words else ""
        self._fail(why)

    def broken(self, reason: str) -> None:
        """The child sent what it must not."""
        self._fail(reason)
        self._give_up()

    def _give_up(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def _shut(self) -> None:
        process, self._process = self._process, None
        if self._transport is not None:
            self._transport.close()
        if self._burial is not None:
            await self._burial
        if process is not None:
            await asyncio.to_thread(_reap, process)
        if self._log is not None:
            await asyncio.to_thread(self._log.join, _LAST_WORDS_S)


class _Link(asyncio.Protocol):
    """The parent's side of the socket."""

    def __init__(self, engine: ChildEngine) -> None:
        self._engine = engine
        self._reader = FrameReader()

    def data_received(self, data: bytes) -> None:
        """Hand every event on; a step's outputs come in one frame."""
        try:
            for value in self._reader.feed(data):
                self._engine._receive(decode_event(value))  # noqa: SLF001 - one class in two
        except (ValueError, TypeError) as error:
            self._engine.broken(f"the engine process sent a bad frame: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The child is gone, or we closed."""
        del exc
        self._engine.lost()


def child_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The child's variables: ours, with what llama.cpp and its memory need (docs/adr/0029).

    A choice about ``glibc.malloc.hugetlb`` that is there already stays.
    """
    tunables = ours.get(_TUNABLES, "")
    if _HUGE_PAGES not in tunables:
        tunables = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
    # ggml would start a debugger for its backtrace, which hangs in a container.
    return {**ours, "GGML_NO_BACKTRACE": "1", _TUNABLES: tunables}


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child whose socket is closed; it is killed when it does not go by itself."""
    try:
        return process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
