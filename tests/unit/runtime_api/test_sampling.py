"""Sampling fields, logprobs and grammars from an OpenAI client to the real demo model and back."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from support.engine_builders import runtime_config
from support.runtime_http import ScriptedEngine, Site, running
from terrace_runtime.backend import Grammar
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SETTINGS = runtime_config(parallel=8, context_tokens=512, batch_tokens=256, threads=1)
ASK: Any = [{"role": "user", "content": "What is a pod?"}]


@asynccontextmanager
async def demo() -> AsyncIterator[tuple[Site, openai.AsyncOpenAI]]:
    """The demo model behind HTTP."""
    engine = InProcessEngine(SETTINGS, LlamaBackend())
    async with running(engine, SETTINGS) as site, site.client() as client:
        yield site, client


class Pet(BaseModel):
    """What the model is to answer."""

    name: str = Field(max_length=12)
    kind: Literal["llama", "alpaca"]
    age: int = Field(ge=0, le=40)
    friends: list[Literal["Inti", "Kusi"]] = Field(max_length=3)


async def test_every_answer_to_a_schema_parses_even_at_a_high_temperature() -> None:
    async with demo() as (_, client):

        async def pet(seed: int) -> Pet | None:
            answer = await client.chat.completions.parse(
                model="chat",
                messages=ASK,
                response_format=Pet,
                seed=seed,
                temperature=[0, 1, 3][seed % 3],
                extra_body={"top_k": 0, "min_p": 0},
                top_p=1,
            )
            assert answer.choices[0].finish_reason == "stop"
            return answer.choices[0].message.parsed

        pets = await asyncio.gather(*(pet(seed) for seed in range(24)))
    assert all(isinstance(found, Pet) for found in pets)
    assert len({found.model_dump_json() for found in pets if found}) > 12


SCHEMA: Any = {"type": "object", "properties": {"a": {"enum": [1, None]}}, "required": ["a"]}
SCHEMA["additionalProperties"] = False
JSON_A = r'\{\s*"a"\s*:\s*(1|null)\s*\}'
GRAMMARS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON_A),
    ({"json_schema": SCHEMA}, JSON_A),
    ({"guided_json": SCHEMA}, JSON_A),
    ({"guided_json": json.dumps(SCHEMA)}, JSON_A),
    ({"structured_outputs": {"json": SCHEMA}}, JSON_A),
    ({"grammar": 'root ::= ("yes" | "no") "!"{1,2}'}, "(yes|no)!{1,2}"),
    ({"guided_grammar": "root ::= [0-9]{3} [^a-z]"}, r"(?s:[0-9]{3}[^a-z])"),
    ({"structured_outputs": {"grammar": 'root ::= "a" root? "b"'}}, "a+b+"),
    ({"guided_regex": "[a-c]{4}|z+y"}, "[a-c]{4}|z+y"),
    ({"structured_outputs": {"regex": "(ab)+"}}, "(ab)+"),
    ({"guided_choice": ["ñandú", 'say "hi"']}, 'ñandú|say "hi"'),
    ({"structured_outputs": {"choice": ["x", "y"]}}, "x|y"),
]


async def test_each_way_to_ask_for_a_grammar_holds_the_answer_to_it() -> None:
    async with demo() as (_, client):

        async def text(extra: dict[str, Any], seed: int) -> str:
            answer = await client.chat.completions.create(
                model="chat",
                messages=ASK,
                temperature=seed,
                seed=seed,
                max_tokens=200,
                extra_body=extra,
            )
            assert answer.choices[0].finish_reason == "stop"
            return str(answer.choices[0].message.content)

        for extra, pattern in GRAMMARS:
            for found in await asyncio.gather(text(extra, 0), text(extra, 1), text(extra, 2)):
                assert re.fullmatch(pattern, found), (extra, found)


async def test_a_streamed_answer_to_any_object_is_the_whole_one() -> None:
    async with demo() as (_, client):
        asked: Any = {
            "model": "chat",
            "messages": ASK,
            "response_format": {"type": "json_object"},
            "seed": 3,
            "temperature": 1,
        }
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content
    if whole.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    assert text.lstrip().startswith("{")


DEEP: dict[str, Any] = {}
for _ in range(150):
    DEEP = {"items": DEEP}
UNUSABLE: list[tuple[dict[str, Any], str, str]] = [
    ({"grammar": "root ::= foo"}, "grammar", "no rule foo"),
    ({"grammar": 'root ::= "a" ' + "#" * 70_000}, "grammar", "70013 characters, more than 65536"),
    ({"guided_regex": "(?=x)a"}, "guided_regex", "look-around"),
    ({"guided_regex": "("}, "guided_regex", "unclosed group"),
    ({"guided_json": {"not": {}}}, "guided_json", "not"),
    ({"guided_json": "{"}, "guided_json", "cannot be used"),
    ({"json_schema": {"type": "string", "enum": [1]}}, "json_schema", "Unsatisfiable"),
    ({"json_schema": DEEP}, "json_schema", "cannot be used"),
    ({"json_schema": {"$ref": "http://example.com/x"}}, "json_schema", "cannot be used"),
    ({"json_schema": {}, "grammar": 'root ::= "a"'}, "grammar", "only one"),
    ({"grammar": 'root ::= "a"', "ignore_eos": True}, "ignore_eos", "end"),
    ({"logit_bias": {"2048": 1}}, "logit_bias", "vocabulary of 2048"),
    ({"dry_sequence_breakers": ["a\0"]}, "dry_sequence_breakers", "bytes"),
]


async def test_what_cannot_be_used_is_refused_by_its_name() -> None:
    async with demo() as (_, client):
        for extra, param, why in UNUSABLE:
            with pytest.raises(openai.BadRequestError, match=why) as caught:
                await client.chat.completions.create(model="chat", messages=ASK, extra_body=extra)
            assert caught.value.param == param, extra


COSTLY = "root ::= " + " ".join(['("a"*)'] * 400) + ' "a"{40} "b"'


async def test_a_grammar_that_costs_too_much_ends_its_own_request_alone() -> None:
    async with demo() as (_, client):
        plain: Any = {"model": "chat", "messages": ASK, "temperature": 0}
        alone = await client.chat.completions.create(**plain)
        costly, beside = await asyncio.gather(
            client.chat.completions.create(**plain, extra_body={"grammar": COSTLY}),
            client.chat.completions.create(**plain),
            return_exceptions=True,
        )
    assert isinstance(costly, openai.APIStatusError)
    assert "within its grammar" in str(costly)
    assert not isinstance(beside, BaseException)
    assert beside.choices[0].message.content == alone.choices[0].message.content


async def test_chat_logprobs_are_the_tokens_of_the_text() -> None:
    async with demo() as (_, client):
        asked: Any = {"model": "chat", "messages": ASK, "temperature": 0, "logprobs": True}
        answer = await client.chat.completions.create(**asked, top_logprobs=3)
        bare = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, top_logprobs=3, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        plain = await client.chat.completions.create(model="chat", messages=ASK, temperature=0)
    assert plain.choices[0].logprobs is None
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode() == (
        choice.message.content
    )
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens - 1, "all but the end of the answer"
    for entry in content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        best = entry.top_logprobs[0]
        assert (best.token, best.logprob) == (entry.token, entry.logprob), "greedy takes the best"
    assert bare.choices[0].logprobs is not None
    assert all(not entry.top_logprobs for entry in bare.choices[0].logprobs.content or ())
    streamed = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]


async def test_logprobs_end_where_a_stop_string_cuts_the_text() -> None:
    async with demo() as (_, client):
        asked: Any = {"model": "chat", "messages": ASK, "temperature": 0, "logprobs": True}
        full = await client.chat.completions.create(**asked)
        text = str(full.choices[0].message.content)
        asked["stop"] = [text[8:20]]
        cut = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    assert cut.choices[0].message.content == text[:8]
    assert cut.choices[0].logprobs is not None
    tokens = [entry.token for entry in cut.choices[0].logprobs.content or ()]
    assert "".join(tokens).startswith(text[:8])
    assert len("".join(tokens[:-1])) < 8, "a token of which nothing is shown"
    streamed = [entry.token for one in chunks if one.logprobs for entry in one.logprobs.content]
    assert streamed == tokens


async def test_completion_logprobs_hold_tokens_offsets_and_alternatives() -> None:
    async with demo() as (site, client), site.client(strict=False) as lenient:
        asked: Any = {"model": "chat", "prompt": "A llama é", "max_tokens": 12, "seed": 5}
        answer = await client.completions.create(**asked, logprobs=2)
        bare = await client.completions.create(**asked, logprobs=0)
        stream = await lenient.completions.create(**asked, logprobs=2, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    found = answer.choices[0].logprobs
    text = answer.choices[0].text
    assert found is not None
    assert found.tokens
    assert found.token_logprobs
    assert found.top_logprobs
    assert found.text_offset
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token
    for token, chosen, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] == chosen
        assert 2 <= len(top) <= 3
    assert bare.choices[0].logprobs is not None
    assert bare.choices[0].logprobs.top_logprobs is None
    offsets = [
        offset for one in chunks if one.logprobs for offset in one.logprobs.text_offset or ()
    ]
    assert offsets == found.text_offset


async def test_a_bias_changes_the_answer() -> None:
    async with demo() as (_, client):
        asked: Any = {"model": "chat", "messages": ASK, "temperature": 0, "max_tokens": 8}
        plain = await client.chat.completions.create(**asked)
        for token in range(3, 2048, 256):
            biased = await client.chat.completions.create(**asked, logit_bias={str(token): 100})
            assert biased.choices[0].message.content != plain.choices[0].message.content


async def test_every_field_reaches_the_engine() -> None:
    engine = ScriptedEngine()
    extra = {
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "repeat_last_n": 32,
        "dry_multiplier": 0.8,
        "dry_base": 2,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 100,
        "dry_sequence_breakers": ["\n", "."],
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "guided_regex": "a+",
    }
    async with running(engine) as site, site.client() as client:
        await client.chat.completions.create(
            model="demo",
            messages=ASK,
            logit_bias={"5": -100, "7": 1},
            logprobs=True,
            top_logprobs=4,
            temperature=0.5,
            extra_body=extra,
        )
        await client.completions.create(model="demo", prompt="x")
    assert engine.requests[0].sampling == SamplingParams(
        temperature=0.5,
        typical_p=0.9,
        repeat_penalty=1.2,
        repeat_last_n=32,
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_penalty_last_n=100,
        dry_sequence_breakers=("\n", "."),
        xtc_probability=0.5,
        xtc_threshold=0.2,
        logit_bias=((5, -100), (7, 1)),
        logprobs=4,
        grammar=Grammar("regex", "a+", "guided_regex"),
    )
    assert engine.requests[1].sampling == SamplingParams()
