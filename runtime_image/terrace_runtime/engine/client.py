"""The engine's port, asyncio side. Two shapes stand behind it: in-process and a child process.

Owns: the EngineClient protocol and nothing else. Next: ``inprocess.py`` runs the engine's thread
in this process (SDK, tests); ``process.py`` runs it in a child, so that an abort inside llama.cpp
is an error event and not a dead server. ``api`` talks to this protocol alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from terrace_runtime.contract import EngineReport
    from terrace_runtime.engine.request import EngineStats, ModelInfo, Request, RequestOutput


class RequestOutputs(Protocol):
    """An async iterator over one request's outputs; a reader who leaves early calls ``aclose``."""

    def __aiter__(self) -> RequestOutputs:
        """Itself."""

    async def __anext__(self) -> RequestOutput:
        """The next output; waits for it."""

    async def aclose(self) -> None:
        """Abort the request if it still runs; safe to call twice."""


class EngineClient(Protocol):
    """Submits requests to one engine and hands their outputs out."""

    @property
    def info(self) -> ModelInfo:
        """Facts of the loaded model; valid after ``start``."""

    @property
    def stats(self) -> EngineStats:
        """The latest picture; never blocks."""

    @property
    def report(self) -> EngineReport:
        """Tiers, sequences and speeds, at most a second old; never blocks."""

    @property
    def error(self) -> str:
        """Why the engine is dead; empty while it lives (health is green)."""

    async def start(self) -> None:
        """Load the model and run. Raises EngineError with the reason."""

    def submit(self, request: Request) -> RequestOutputs:
        """Queue ``request`` at once and return its outputs; the last one has ``finish`` set.

        Raises QueueFullError or EngineError now, InvalidRequestError now or at the first output.
        Closing the iterator (``aclose``, a cancelled task) aborts the request within a step.
        Outputs are bounded per request: a reader that falls behind gets its texts joined.
        """

    def abort(self, request_id: str) -> None:
        """End a request with ABORT; unknown ids are ignored."""

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, let the running ones finish, abort the rest after ``timeout_s``."""

    async def close(self) -> None:
        """Stop the engine; requests that still run end with ABORT. Safe to call twice."""
