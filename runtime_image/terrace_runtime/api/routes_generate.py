"""``POST /v1/chat/completions`` and ``POST /v1/completions``.

Owns: from a body to engine requests. Does not own: parsing (``schemas``), templates, decoding
images (``image_decoder``), running (``generation``) or sending (``answer``).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from terrace_runtime.api.answer import Answer
from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.generation import Generation, copies, max_tokens
from terrace_runtime.api.middleware import forget_body
from terrace_runtime.api.schemas import ChatBody, CompletionBody, parse
from terrace_runtime.api.wire import ChatWire, CompletionWire
from terrace_runtime.engine.request import ImagePart, PromptPart
from terrace_runtime.engine.request import Request as EngineRequest

if TYPE_CHECKING:
    from terrace_runtime.api.state import ServerState

router = APIRouter()
BODY_SECONDS: Final = 60.0
MAX_GENERATIONS: Final = 16
COMPLETION_TOKENS: Final = 16
"""OpenAI's default of max_tokens for /v1/completions."""


@router.post("/v1/chat/completions", response_class=Response)
async def chat(http: Request) -> Response:
    """Answer a conversation."""
    state: ServerState = http.app.state.server
    with Counted(state, "chat"):
        state.check_ready()
        body = parse(ChatBody, await read_body(http))
        tenant, priority = state.admit(http, body.model)
        prompt = await _prompt(http, body)
        wanted = body.max_completion_tokens or body.max_tokens
        answer_id = f"chatcmpl-{uuid.uuid4().hex}"
        request = EngineRequest(
            id=answer_id,
            prompt=prompt,
            sampling=body.sampling(state.config),
            max_tokens=max_tokens(wanted, state.config),
            stop=body.stops,
            tenant=tenant,
            priority=priority,
            timeout_s=body.timeout,
            pin=bool(body.pin_prompt),
            stream=bool(body.stream),
            adapter=state.adapter(body.model),
            add_bos=False,
        )
    wire = ChatWire(
        answer_id,
        int(time.time()),
        body.model,
        state.fingerprint,
        wants_usage=body.wants_usage,
        wants_logprobs=body.num_logprobs() is not None,
    )
    generation = Generation(state, copies(request, body.n or 1), "chat", body.n or 1)
    return Answer(generation, wire, stream=bool(body.stream))


@router.post("/v1/completions", response_class=Response)
async def completions(http: Request) -> Response:
    """Continue one prompt or several."""
    state: ServerState = http.app.state.server
    with Counted(state, "completions"):
        state.check_ready()
        body = parse(CompletionBody, await read_body(http))
        tenant, priority = state.admit(http, body.model)
        prompts = body.prompts()
        if len(prompts) * (body.n or 1) > MAX_GENERATIONS:
            raise ApiError(400, f"prompts times n is more than {MAX_GENERATIONS}", param="prompt")
        answer_id = f"cmpl-{uuid.uuid4().hex}"
        requests = []
        for index, prompt in enumerate(prompts):
            is_text = isinstance(prompt, str)
            request = EngineRequest(
                id=f"{answer_id}-{index}",
                prompt=(PromptPart(prompt),) if isinstance(prompt, str) else (),
                prompt_tokens=() if isinstance(prompt, str) else prompt,
                sampling=body.sampling(state.config),
                max_tokens=max_tokens(body.max_tokens or COMPLETION_TOKENS, state.config),
                stop=body.stops,
                tenant=tenant,
                priority=priority,
                timeout_s=body.timeout,
                pin=bool(body.pin_prompt),
                stream=bool(body.stream),
                adapter=state.adapter(body.model),
                add_bos=is_text,
            )
            requests += copies(request, body.n or 1)
    wire = CompletionWire(
        answer_id,
        int(time.time()),
        body.model,
        state.fingerprint,
        wants_usage=body.wants_usage,
        wants_logprobs=body.num_logprobs() is not None,
    )
    generation = Generation(state, requests, "completions", body.n or 1)
    return Answer(generation, wire, stream=bool(body.stream))


async def _prompt(http: Request, body: ChatBody) -> tuple[PromptPart | ImagePart, ...]:
    """The conversation as the model reads it, with its images where they stood."""
    state: ServerState = http.app.state.server
    found = body.conversation()
    if found.images:
        state.check_takes_images(found.images[0].where)
    rendered = await state.renderer.render(found.turns)
    if not found.images:
        return tuple(part for part in rendered if isinstance(part, PromptPart))
    images = await state.images.decode(found.images, body.n or 1)
    # The engine counts their pixels from here on.
    forget_body(http.scope, sum(len(image.url) for image in found.images))
    return tuple(images[part] if isinstance(part, int) else part for part in rendered)


class Counted:
    """Counts requests that are refused before the engine sees them."""

    def __init__(self, state: ServerState, endpoint: str) -> None:
        self._state = state
        self._endpoint = endpoint

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Count a refusal."""
        if isinstance(error, ApiError):
            self._state.metrics.count_request(self._endpoint, error.outcome)


async def read_body(http: Request) -> bytes:
    """The whole body; raises ApiError when it does not come in time."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            # Not http.body(), which would keep the bytes until the answer has ended.
            return b"".join([chunk async for chunk in http.stream()])
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its request was complete") from None
