"""One request's outputs on their way to one reader.

Owns: the buffer between the engine and a reader who may be slower: texts join, nothing is lost,
memory stays that of the answer. Does not own: the request's fate in the engine. Next:
``frontend.py`` fills it; ``api`` reads it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from terrace_runtime.engine.request import FinishReason, RequestOutput

if TYPE_CHECKING:
    from collections.abc import Callable


MAX_UNREAD = 512
"""Outputs kept apart for a reader who is behind; more are joined to one."""


class OutputStream:
    """An async iterator of RequestOutput; ``aclose`` or a cancelled reader aborts the request."""

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        """``abort`` is called when the reader leaves before the end."""
        self.request_id = request_id
        self._abort = abort
        self._unread: list[RequestOutput] = []
        self._error: Exception | None = None
        self._is_ended = False
        self._is_read_out = False
        self._num_prompt_tokens = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_begun(self) -> bool:
        """An output came."""
        return self._num_prompt_tokens > 0

    def put(self, output: RequestOutput) -> None:
        """Add an output; on the event loop's thread."""
        if output.num_prompt_tokens:
            self._num_prompt_tokens = output.num_prompt_tokens
        self._is_ended = output.finish is not None
        self._unread.append(output)
        if len(self._unread) >= MAX_UNREAD:
            self._unread = [_join(self._unread)]
        self._wake()

    def end(self, finish: FinishReason, error: str = "") -> None:
        """The last output, when the engine can give none."""
        if not self._is_ended:
            prompt = self._num_prompt_tokens
            self.put(RequestOutput(self.request_id, "", 0, prompt, 0, finish, error))

    def refuse(self, error: Exception) -> None:
        """Have the reader get ``error``."""
        self._error = error
        self._is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while not self._unread and self._error is None:
            if self._is_read_out:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                await self.aclose()
                raise
        if self._error is not None:
            error, self._error = self._error, None
            self._is_read_out = True
            raise error
        unread, self._unread = self._unread, []
        output = unread[0] if len(unread) == 1 else _join(unread)
        self._is_read_out = output.finish is not None
        return output

    async def aclose(self) -> None:
        """Stop reading; aborts the request if it still runs."""
        if not self._is_ended:
            self._abort(self.request_id)
        self._is_read_out = True
        self._unread.clear()


def _join(outputs: list[RequestOutput]) -> RequestOutput:
    last = outputs[-1]
    return RequestOutput(
        last.id,
        "".join(output.text for output in outputs),
        sum(output.num_tokens for output in outputs),
        max(output.num_prompt_tokens for output in outputs),
        max(output.num_cached_tokens for output in outputs),
        last.finish,
        last.error,
        last.embedding,
        max(output.cached_tier for output in outputs),
        tuple(entry for output in outputs for entry in output.logprobs),
        max(output.queued_s for output in outputs),
    )
