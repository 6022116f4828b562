"""EngineClient, shape 1: the engine's threads in this process.

Owns: the hop between the engine's thread and the event loop, once per step. Does not own: the
engine. For the SDK and tests: an abort inside llama.cpp ends this process, ``process.py`` is the
shape that survives it. Next: ``runner.py``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from terrace_runtime.engine.frontend import EngineFrontend
from terrace_runtime.engine.runner import EngineRunner

if TYPE_CHECKING:
    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.messages import Command, Event

_STOP_S = 30.0
"""For the step under way to end, and for KV blocks to reach the disk."""


class InProcessEngine(EngineFrontend):
    """See the port, ``client.EngineClient``."""

    def __init__(self, config: RuntimeConfig, backend: Backend) -> None:
        """``backend`` is not loaded yet."""
        super().__init__(config)
        self._backend = backend
        self._runner: EngineRunner | None = None

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:
            # A closed loop raises: then nobody is left to hear it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._receive, event)

        self._runner = EngineRunner(self._backend, self._config, emit)
        self._runner.start()

    async def _shut(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.to_thread(runner.stop, _STOP_S)

    def _send(self, command: Command) -> None:
        if self._runner is not None:
            self._runner.send(command)

    def _give_up(self) -> None:
        """A thread cannot be ended; it is abandoned, and health stays red."""
        self._runner = None
