"""``POST /v1/embeddings``: inputs become vectors, a bounded number of them at a time.

Owns: the body, the window of inputs that are with the engine, and the document. Does not own:
batching (``engine.embedding``) or the connection (``answer``).
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.responses import Response
from typing_extensions import override

from terrace_runtime.api.answer import Answer
from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.generation import Generation
from terrace_runtime.api.routes_generate import Counted, read_body
from terrace_runtime.api.schemas import TokenIds, each_text, parse
from terrace_runtime.engine.request import (
    EngineError,
    InvalidRequestError,
    PromptPart,
    QueueFullError,
)
from terrace_runtime.engine.request import Request as EngineRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from terrace_runtime.api.state import ServerState
    from terrace_runtime.engine.client import RequestOutputs
    from terrace_runtime.engine.request import RequestOutput

router = APIRouter()
MAX_INPUTS: Final = 2048
"""OpenAI's own limit."""
WINDOW: Final = 64
"""Inputs of one request that are with the engine at a time: a full batch of short ones."""


def _form(value: object) -> str:
    """Which of its forms an input has, so that an error names the item at fault and no other."""
    if not isinstance(value, list):
        return "str"
    first = value[0] if value else ""
    if isinstance(first, list):
        return "list[list]"
    return "list[str]" if isinstance(first, str) else "list[int]"


_MANY: Final = Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
Inputs = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], _MANY, Tag("list[str]")]
    | Annotated[TokenIds, Tag("list[int]")]
    | Annotated[list[TokenIds], _MANY, Tag("list[list]")],
    Discriminator(_form),
]


class EmbeddingBody(BaseModel):
    """``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=256)
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=1_000_000)
    timeout: float | None = Field(default=None, gt=0, le=86_400)
    """Ours: seconds after which the request ends."""


@router.post("/v1/embeddings", response_class=Response)
async def embeddings(http: Request) -> Response:
    """A vector for each input."""
    state: ServerState = http.app.state.server
    with Counted(state, "embeddings"):
        state.check_ready()
        body = parse(EmbeddingBody, await read_body(http))
        tenant, priority = state.admit(http, body.model)
        _check_dimensions(body.dimensions, state.engine.info.embedding_width)
        answer_id = f"embd-{uuid.uuid4().hex}"
        requests = [
            EngineRequest(
                id=f"{answer_id}-{index}",
                prompt=(PromptPart(item),) if isinstance(item, str) else (),
                prompt_tokens=() if isinstance(item, str) else item,
                tenant=tenant,
                priority=priority,
                timeout_s=body.timeout,
                adapter=state.adapter(body.model),
                embed=True,
            )
            for index, item in enumerate(each_text(body.input))
        ]
    wire = EmbeddingWire(body.model, is_base64=body.encoding_format == "base64")
    return Answer(EmbeddingRun(state, requests), wire, stream=False)


def _check_dimensions(wanted: int | None, width: int) -> None:
    if wanted is not None and width and wanted != width:
        # A prefix of a vector means something only to models that were trained for it, and no
        # header says which ones were.
        raise ApiError(
            400,
            f"dimensions is {wanted}, but this model's vectors have {width} numbers and cannot be "
            "cut; leave the field out",
            param="dimensions",
        )


class EmbeddingRun(Generation):
    """The inputs of one HTTP request; a queue that is full meanwhile holds up only the rest."""

    def __init__(self, state: ServerState, requests: list[EngineRequest]) -> None:
        super().__init__(state, requests, "embeddings", 1)

    @override
    async def __aenter__(self) -> Self:
        self._state.check_ready()
        return self

    @override
    async def _merged(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        running: dict[asyncio.Task[RequestOutput], int] = {}
        try:
            while self._fill(running):
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield running.pop(task), task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _fill(self, running: dict[asyncio.Task[RequestOutput], int]) -> bool:
        """Submit as many as the window and the queue take; whether anything runs."""
        while len(self._streams) < len(self._requests) and len(running) < WINDOW:
            index = len(self._streams)
            try:
                stream = self._state.engine.submit(self._requests[index])
            except QueueFullError as error:
                if running:
                    break
                raise self._refusal(error) from error
            except (InvalidRequestError, EngineError) as error:
                raise self._named(self._refusal(error), index) from error
            self._streams.append(stream)
            running[asyncio.create_task(self._result(stream, index))] = index
        return bool(running)

    async def _result(self, stream: RequestOutputs, index: int) -> RequestOutput:
        try:
            async for output in self._translated(stream):
                if output.finish is not None:
                    return output
        except ApiError as error:
            raise self._named(error, index) from error
        raise ApiError(500, "the engine gave no vector", code="engine_error")

    def _named(self, error: ApiError, index: int) -> ApiError:
        if error.param == "prompt":
            error.param = "input" if len(self._requests) == 1 else f"input[{index}]"
        return error


class EmbeddingWire:
    """The document; embeddings are not streamed."""

    def __init__(self, model: str, *, is_base64: bool) -> None:
        self._model = model
        self._is_base64 = is_base64
        self._vectors: dict[int, str] = {}

    def collect(self, index: int, output: RequestOutput) -> None:
        """Keep a vector."""
        self._vectors[index] = output.embedding

    def document(self, generation: Generation) -> bytes:
        """The whole answer."""
        count = generation.num_prompt_tokens
        data = [
            {"object": "embedding", "index": index, "embedding": self._shown(vector)}
            for index, vector in sorted(self._vectors.items())
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        body = {"object": "list", "data": data, "model": self._model, "usage": usage}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def _shown(self, vector: str) -> Any:
        return vector if self._is_base64 else np.frombuffer(base64.b64decode(vector), "<f4")

    def event(self, index: int, output: RequestOutput) -> bytes:
        """There are none: embeddings are answered whole, never streamed."""
        raise NotImplementedError("embeddings are not streamed")

    def last_event(self, generation: Generation) -> bytes:
        """There are none: embeddings are answered whole, never streamed."""
        raise NotImplementedError("embeddings are not streamed")
