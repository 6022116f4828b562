"""The HTTP side over the real engine on the deterministic backend."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import openai
import pytest

from support.engine_builders import runtime_config
from support.runtime_http import LONG_S, running, until
from terrace_runtime.api.chat_template import TemplateRenderer
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.engine.inprocess import InProcessEngine

SETTINGS = runtime_config(parallel=4, max_waiting=64)


def body(number: int, **more: Any) -> dict[str, Any]:
    content = f"question {number} 🦙"
    return {
        "model": "chat",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 40,
        **more,
    }


async def test_clients_at_once_get_what_each_gets_alone() -> None:
    engine = InProcessEngine(SETTINGS, FakeBackend())
    async with (
        running(engine, SETTINGS, renderer=partial(TemplateRenderer, render_s=LONG_S)) as site,
        site.client() as client,
    ):

        async def whole(number: int) -> str:
            answer = await client.chat.completions.create(**body(number))
            return str(answer.choices[0].message.content)

        async def streamed(number: int) -> str:
            stream = await client.chat.completions.create(**body(number), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        alone = [await whole(number) for number in range(16)]
        together = await asyncio.gather(*(streamed(number) for number in range(16)))
    assert list(together) == alone
    assert len(set(alone)) == 16


async def test_a_prompt_over_the_context_is_refused_by_name() -> None:
    engine = InProcessEngine(SETTINGS, FakeBackend())
    async with running(engine, SETTINGS) as site, site.client() as client:
        for stream in (False, True):
            long = [{"role": "user", "content": "x" * 1000}]
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(**body(0, messages=long), stream=stream)
            assert (caught.value.param, caught.value.code) == (
                "messages",
                "context_length_exceeded",
            )


async def test_a_client_that_leaves_frees_its_place() -> None:
    engine = InProcessEngine(SETTINGS, FakeBackend(eos_odds=10**9))
    async with running(engine, SETTINGS) as site, site.client() as client:
        stream = await client.chat.completions.create(**body(1, max_tokens=200), stream=True)
        await anext(aiter(stream))
        await stream.close()
        await until(lambda: engine.stats.running + engine.stats.waiting == 0)
