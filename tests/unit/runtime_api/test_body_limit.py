"""Bodies are bounded one by one and all together: a replica has little memory to spare."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.middleware import BodyLimit, body_bounds

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

SCOPE: dict[str, Any] = {"type": "http", "headers": [], "method": "POST", "path": "/"}


async def deaf(_message: Message) -> None:
    """A client whose answers nobody looks at."""


def body_of(size: int) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * size, "more_body": False}

    return receive


async def test_open_bodies_together_stay_below_the_total_and_leave_it_when_they_end() -> None:
    release = asyncio.Event()
    inside = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        inside.set()
        await release.wait()

    limit = BodyLimit(app, max_bytes=600, total_bytes=1000)
    first = asyncio.create_task(limit(SCOPE, body_of(600), deaf))
    await inside.wait()
    with pytest.raises(ApiError) as refused:
        await limit(SCOPE, body_of(401), deaf)
    assert refused.value.status == 429
    assert refused.value.retry_after_s == 1
    release.set()
    await limit(SCOPE, body_of(400), deaf)
    await first
    await limit(SCOPE, body_of(600), deaf)


@pytest.mark.parametrize(
    ("context_tokens", "one", "together"),
    [
        (64, 256 * 1024 + 64 * 64, 4 * 2**20),
        (8192, 768 * 1024, 4 * 2**20),
        (131_072, 8 * 2**20, 8 * 2**20),
        (1_048_576, 8 * 2**20, 8 * 2**20),
    ],
)
def test_a_body_may_be_as_large_as_a_context_can_need(
    context_tokens: int, one: int, together: int
) -> None:
    assert body_bounds(context_tokens) == (one, together)
