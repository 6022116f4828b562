"""What an unmodified OpenAI client gets from a replica, whole and streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from support.runtime_http import ScriptedEngine, Site, config, piece, raw, running, words
from terrace_runtime.contract import SamplingDefaults
from terrace_runtime.engine.request import FinishReason, PromptPart

if TYPE_CHECKING:
    from support.runtime_http import Step
    from terrace_runtime.engine.request import Request

HELLO: Any = [{"role": "user", "content": "Hi"}]


async def events(site: Site, path: str, body: dict[str, Any]) -> list[bytes]:
    """The data of each SSE event of a stream."""
    reply = await raw(site.port, "POST", path, orjson.dumps({**body, "stream": True}))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    text = b"".join(unchunked(reply.body))
    assert text.endswith(b"\n\n")
    found = text[:-2].split(b"\n\n")
    assert all(event.startswith(b"data: ") for event in found)
    return [event[6:] for event in found]


def unchunked(body: bytes) -> list[bytes]:
    pieces = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return pieces


async def test_a_chat_answer_is_what_the_client_expects() -> None:
    async with running(ScriptedEngine()) as site, site.client() as client:
        answer = await client.chat.completions.create(model="demo", messages=HELLO)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello world")
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "demo")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_a_chat_stream_is_what_the_client_expects() -> None:
    async with running(ScriptedEngine()) as site, site.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].delta.content is None
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_comes_last_and_only_when_asked_for() -> None:
    async with running(ScriptedEngine()) as site:
        body: dict[str, Any] = {"model": "demo", "messages": HELLO}
        plain = await events(site, "/v1/chat/completions", body)
        body["stream_options"] = {"include_usage": True}
        asked = await events(site, "/v1/chat/completions", body)
    assert plain[-1] == asked[-1] == b"[DONE]"
    assert all("usage" not in orjson.loads(event) for event in plain[:-1])
    chunks = [orjson.loads(event) for event in asked[:-1]]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 9


async def test_completions_are_answered_whole_and_streamed() -> None:
    async with running(ScriptedEngine()) as site, site.client() as client:
        whole = await client.completions.create(model="chat", prompt="Once")
        # Its type for pieces demands a finish reason in each, which OpenAI does not send either.
        async with site.client(strict=False) as lenient:
            stream = await lenient.completions.create(model="chat", prompt="Once", stream=True)
            chunks = [chunk async for chunk in stream]
    assert whole.choices[0].text == "Hello world"
    assert (whole.object, whole.id[:5]) == ("text_completion", "cmpl-")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_several_prompts_and_choices_keep_their_order_and_usage() -> None:
    def repeated(request: Request) -> list[Step]:
        part, *_ = request.prompt
        assert isinstance(part, PromptPart)
        return words(part.text, request.id[-3:])

    engine = ScriptedEngine(repeated)
    async with running(engine) as site, site.client() as client:
        answer = await client.completions.create(model="chat", prompt=["a", "b"], n=2, seed=5)
        many = await client.chat.completions.create(
            model="demo", messages=HELLO, n=3, stream=True, seed=2**40
        )
        seen = [chunk.choices[0].index async for chunk in many if chunk.choices[0].finish_reason]
    assert [choice.text for choice in answer.choices] == ["a0-0", "a0-1", "b1-0", "b1-1"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 8)
    assert sorted(seen) == [0, 1, 2]
    assert [request.sampling.seed for request in engine.requests[:4]] == [5, 6, 5, 6]
    assert len({request.sampling.seed for request in engine.requests[4:]}) == 3
    assert not engine.open


async def test_token_ids_reach_the_engine_as_they_are() -> None:
    engine = ScriptedEngine()
    async with running(engine) as site, site.client() as client:
        await client.completions.create(model="chat", prompt=[1, 2, 3])
        await client.completions.create(model="chat", prompt=[[1, 2], [3]])
    assert [r.prompt_tokens for r in engine.requests] == [(1, 2, 3), (1, 2), (3,)]
    assert not any(request.add_bos for request in engine.requests)


async def test_what_is_asked_reaches_the_engine_and_defaults_fill_the_rest() -> None:
    engine = ScriptedEngine()
    settings = config(
        sampling=SamplingDefaults(temperature=0.3, top_k=7, repeat_penalty=1.1), max_tokens=50
    )
    async with running(engine, settings) as site, site.client() as client:
        await client.chat.completions.create(
            model="demo",
            messages=HELLO,
            max_completion_tokens=40,
            top_p=0.5,
            stop=["a", "b"],
            seed=-1,
            presence_penalty=1,
            extra_body={"top_k": -1, "min_p": 0.2, "ignore_eos": True, "some_unknown_field": 1},
        )
        await client.chat.completions.create(model="demo", messages=HELLO, max_tokens=4000)
        await client.completions.create(model="demo", prompt="x", stop="end")
        await client.completions.create(
            model="demo", prompt="x", extra_body={"repetition_penalty": 1.5}
        )
    first, second, third, fourth = engine.requests
    assert (first.max_tokens, second.max_tokens, third.max_tokens) == (40, 50, 16)
    assert (first.stop, third.stop) == (("a", "b"), ("end",))
    assert (first.sampling.temperature, first.sampling.top_p) == (0.3, 0.5)
    assert (first.sampling.top_k, first.sampling.min_p) == (0, 0.2)
    assert first.sampling.seed == 2**32 - 2
    assert first.sampling.ignore_eos
    assert first.sampling.presence_penalty == 1
    assert second.sampling.top_k == 7
    assert second.sampling.seed is None
    assert (third.sampling.repeat_penalty, fourth.sampling.repeat_penalty) == (1.1, 1.5)


async def test_a_prompt_is_the_rendered_template_in_one_piece() -> None:
    engine = ScriptedEngine()
    async with running(engine) as site, site.client() as client:
        await client.chat.completions.create(
            model="demo",
            messages=[
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
                },
            ],
        )
    assert engine.requests[0].prompt == (
        PromptPart(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            special=True,
        ),
    )
    assert not engine.requests[0].add_bos


async def test_control_tokens_in_client_text_are_plain_text() -> None:
    engine = ScriptedEngine()
    async with running(engine) as site, site.client() as client:
        await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "x<|im_end|>y"}]
        )
        await client.completions.create(model="demo", prompt="x<|im_end|>y")
    assert engine.requests[0].prompt == (
        PromptPart("<|im_start|>user\nx", special=True),
        PromptPart("<|im_end|>", special=False),
        PromptPart("y<|im_end|>\n<|im_start|>assistant\n", special=True),
    )
    assert engine.requests[1].prompt == (PromptPart("x<|im_end|>y", special=False),)
    assert engine.requests[1].add_bos


async def test_text_survives_the_stream_byte_for_byte() -> None:
    texts = ['quote " and \\ and \n', "🦙", "", "\u2028é\x00", "</script>"]
    engine = ScriptedEngine(lambda _: words(*texts))
    async with running(engine) as site, site.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HELLO, stream=True)
        found = [chunk.choices[0].delta.content async for chunk in stream]
    assert "".join(text or "" for text in found) == "".join(texts)


async def test_the_length_limit_is_a_finish_reason() -> None:
    engine = ScriptedEngine(lambda _: [piece("a", num_prompt_tokens=1, finish=FinishReason.LENGTH)])
    async with running(engine) as site, site.client() as client:
        answer = await client.chat.completions.create(model="demo", messages=HELLO)
        stream = await client.chat.completions.create(model="demo", messages=HELLO, stream=True)
        last = [chunk async for chunk in stream][-1]
    assert answer.choices[0].finish_reason == last.choices[0].finish_reason == "length"


async def test_the_fingerprint_is_stable_and_told() -> None:
    async with running(ScriptedEngine()) as site, site.client() as client:
        first = await client.chat.completions.create(model="demo", messages=HELLO)
        second = await client.chat.completions.create(model="demo", messages=HELLO)
    assert first.system_fingerprint == second.system_fingerprint
    assert (first.system_fingerprint or "").startswith("fp_")


@pytest.mark.parametrize("name", ["demo", "chat"])
async def test_models_are_listed_and_found(name: str) -> None:
    async with running(ScriptedEngine()) as site, site.client() as client:
        listed = [model.id async for model in client.models.list()]
        found = await client.models.retrieve(name)
    assert listed == ["demo", "chat"]
    assert (found.id, found.object) == (name, "model")
