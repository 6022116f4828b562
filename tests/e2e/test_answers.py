"""The demo model answers through the whole chain what llama.cpp answered alone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai

from support.chain import ROOT

if TYPE_CHECKING:
    from support.chain import Chain

DEMO = ROOT / "runtime_image/terrace_runtime/demo"
VERIFIED: list[dict[str, Any]] = json.loads((DEMO / "verified.json").read_text(encoding="utf-8"))


async def answer(client: openai.AsyncOpenAI, messages: list[Any], *, stream: bool) -> str:
    if not stream:
        reply = await client.chat.completions.create(
            model="demo", messages=messages, temperature=0, max_tokens=160
        )
        return reply.choices[0].message.content or ""
    chunks = await client.chat.completions.create(
        model="demo", messages=messages, temperature=0, max_tokens=160, stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def ask_all(url: str, at_once: int, *, stream: bool) -> list[str]:
    gate = asyncio.Semaphore(at_once)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=120) as client:

        async def one(case: dict[str, Any]) -> str:
            async with gate:
                return await answer(client, case["messages"], stream=stream)

        return list(await asyncio.gather(*(one(case) for case in VERIFIED)))


async def test_every_verified_answer_comes_word_for_word_streamed_to_16_clients(
    chain: Chain,
) -> None:
    answers = await ask_all(chain.url, 16, stream=True)
    wrong = [
        (case["kind"], got, case["answer"])
        for case, got in zip(VERIFIED, answers, strict=True)
        if got.strip() != case["answer"].strip()
    ]
    assert not wrong, f"{len(wrong)} of {len(VERIFIED)}: {wrong[:3]}"


async def test_whole_answers_are_the_same_as_streamed_ones(chain: Chain) -> None:
    async with openai.AsyncOpenAI(base_url=chain.url, api_key="none") as client:
        for case in VERIFIED[::20]:
            whole = await answer(client, case["messages"], stream=False)
            assert whole.strip() == case["answer"].strip()


def test_the_client_sees_all_models(chain: Chain) -> None:
    with openai.OpenAI(
        base_url=chain.url, api_key="none", _strict_response_validation=True
    ) as client:
        assert "demo" in [m.id for m in client.models.list()]
        assert client.models.retrieve("demo").object == "model"
        assert client.chat.completions.create(
            model="default/demo", messages=[{"role": "user", "content": "Hi"}], max_tokens=4
        ).choices
