"""Runs one HTTP request's generations and hands their outputs out in one stream.

Owns: submitting them all or none, merging, counting, and ending them when the client leaves. Does
not own: the wire (``answer``, ``chat_wire``, ``completion_wire``) or the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from terrace_runtime.api.errors import from_engine, timed_out, unanswered, unavailable
from terrace_runtime.api.sampling_fields import SEEDS
from terrace_runtime.backend import DEAD_END
from terrace_runtime.contract import CACHED_TIER_HEADER, CACHED_TOKENS_HEADER
from terrace_runtime.engine.request import (
    EngineError,
    FinishReason,
    InvalidRequestError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from terrace_runtime.api.errors import ApiError
    from terrace_runtime.api.state import ServerState
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.client import RequestOutputs
    from terrace_runtime.engine.request import Request, RequestOutput

_TIERS = ("", "device", "host", "disk")
"""From warm to cold."""


def max_tokens(wanted: int | None, config: RuntimeConfig) -> int | None:
    """The smaller of what the client wants and what the model's limits allow."""
    if not config.max_tokens:
        return wanted
    return config.max_tokens if wanted is None else min(wanted, config.max_tokens)


def copies(request: Request, count: int) -> list[Request]:
    """``count`` generations of one prompt; a given seed goes up by one for each."""
    found = []
    for index in range(count):
        seed = request.sampling.seed
        own = replace(request.sampling, seed=None if seed is None else (seed + index) % SEEDS)
        found.append(replace(request, id=f"{request.id}-{index}", sampling=own))
    return found


class Generation:
    """All generations of one HTTP request; use as an async context manager."""

    def __init__(
        self, state: ServerState, requests: Sequence[Request], endpoint: str, choices: int
    ) -> None:
        """``endpoint`` is a metric label; each prompt stands ``choices`` times in a row."""
        self._state = state
        self._requests = requests
        self._endpoint = endpoint
        self._streams: list[RequestOutputs] = []
        self._meters = [state.metrics.meter(time.monotonic()) for _ in requests]
        self._choices = choices
        self._open = set(range(len(requests)))
        self.num_generated_tokens = 0
        self._prompts: dict[int, tuple[int, int]] = {}
        self._tiers: set[str] = set()
        self._outcomes: set[str] = set()
        self._generated = [0] * len(requests)
        self._num_images = len(requests[0].images)

    async def __aenter__(self) -> Self:
        """Submit everything; raises ApiError, and then nothing runs."""
        # The replica may have begun to drain while the body came and the template was rendered.
        self._state.check_ready()
        try:
            for request in self._requests:
                self._streams.append(self._state.engine.submit(request))
            # Prompts may hold pixels; only names and bounds are asked for from here on.
            self._requests = [replace(request, prompt=()) for request in self._requests]
        except (QueueFullError, InvalidRequestError, EngineError) as error:
            refusal = self._refusal(error)
            await self._end(refusal.outcome)
            raise refusal from error
        return self

    async def __aexit__(self, *_: object) -> None:
        """Abort what still runs."""
        await self._end("abort")

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once however many answers it gets."""
        return sum(count for index, (count, _) in self._prompts.items() if self._is_first(index))

    @property
    def num_cached_tokens(self) -> int:
        """How many of them were not computed anew."""
        return sum(count for index, (_, count) in self._prompts.items() if self._is_first(index))

    def cache_headers(self) -> list[tuple[bytes, bytes]]:
        """How deep the prompts were found and in which tier, for the gateway's routing."""
        tier = max(self._tiers, key=_TIERS.index, default="") or "none"
        depth = str(self.num_cached_tokens)
        return [
            (CACHED_TOKENS_HEADER.encode(), depth.encode()),
            (CACHED_TIER_HEADER.encode(), tier.encode()),
        ]

    def log_fields(self) -> dict[str, object]:
        """Numbers for the request's line in the log, also of one that was cut short."""
        images = {"images": self._num_images} if self._num_images else {}
        return {
            **images,
            "endpoint": self._endpoint,
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "generated_tokens": self.num_generated_tokens,
            "finish": ",".join(sorted(self._outcomes)),
        }

    def _is_first(self, index: int) -> bool:
        return index % self._choices == 0

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        """(index, output) until every generation has ended; raises ApiError when one fails."""
        async with contextlib.aclosing(self._merged()) as merged:
            async for index, output in merged:
                self._count(index, output)
                if output.finish is FinishReason.ERROR:
                    raise self._failure(index, output.error or "no reason given")
                if output.finish is FinishReason.TIMEOUT:
                    raise timed_out(self._requests[index].timeout_s, self._state.config)
                if output.finish is FinishReason.ABORT:
                    raise unavailable("this replica is shutting down", "draining", 1)
                yield index, output

    async def _merged(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        if len(self._streams) == 1:
            async for output in self._translated(self._streams[0]):
                yield 0, output
            return
        queue: asyncio.Queue[tuple[int, RequestOutput] | Exception] = asyncio.Queue(maxsize=1)

        async def pump(index: int, stream: RequestOutputs) -> None:
            try:
                async for output in self._translated(stream):
                    await queue.put((index, output))
            except Exception as error:  # noqa: BLE001 - raised again on the other side
                await queue.put(error)

        pumps = [asyncio.create_task(pump(i, s)) for i, s in enumerate(self._streams)]
        try:
            while self._open:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _translated(self, stream: RequestOutputs) -> AsyncIterator[RequestOutput]:
        try:
            async for output in stream:
                yield output
        except (InvalidRequestError, EngineError) as error:
            raise self._refusal(error) from error

    def _failure(self, index: int, why: str) -> ApiError:
        """What ended one generation: the engine's fault, or its own grammar's."""
        grammar = self._requests[index].sampling.grammar
        if grammar is not None and why.startswith(DEAD_END):
            return unanswered(f"{grammar.field}: {why}", grammar.field)
        return from_engine(EngineError(why))

    def _refusal(self, error: QueueFullError | InvalidRequestError | EngineError) -> ApiError:
        refusal = from_engine(error)
        if refusal.param == "prompt" and self._endpoint == "chat":
            refusal.param = "messages"  # The engine sees one prompt in either case.
        return refusal

    def _count(self, index: int, output: RequestOutput) -> None:
        if output.num_prompt_tokens:
            if index not in self._prompts:
                self._state.metrics.see_queue(output.queued_s)
            self._prompts[index] = (output.num_prompt_tokens, output.num_cached_tokens)
            if self._is_first(index):
                self._tiers.add(output.cached_tier)
        self._meters[index].tokens(output.num_tokens, self._prompts.get(index, (0, 0))[0])
        self.num_generated_tokens += output.num_tokens
        self._generated[index] += output.num_tokens
        stats = self._state.engine.stats
        self._state.metrics.see_step(stats.steps, stats.batch_tokens, stats.step_seconds)
        if output.finish is not None:
            self._close(index, output.finish.value)

    def _close(self, index: int, outcome: str) -> None:
        self._open.discard(index)
        self._outcomes.add(outcome)
        self._meters[index].end()
        metrics = self._state.metrics
        metrics.count_request(self._endpoint, outcome)
        prompt, _ = self._prompts.get(index, (0, 0))
        tenant = self._requests[index].tenant
        metrics.count_tenant(tenant, outcome, prompt, self._generated[index])

    async def _end(self, outcome: str) -> None:
        for index in list(self._open):
            self._close(index, outcome)
            self._state.engine.abort(self._requests[index].id)
        for stream in self._streams:
            await stream.aclose()
