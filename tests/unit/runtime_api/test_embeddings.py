"""``POST /v1/embeddings`` as an unmodified client sees it."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import orjson
import pytest

from support.engine_builders import runtime_config
from support.runtime_http import Reply, Site, raw, running
from support.tiny_models import MODELS
from terrace_runtime.backend.fake import FakeBackend, Fault
from terrace_runtime.backend.fake_classes import WIDTH, FakeEmbedder
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.process import ChildEngine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import RuntimeConfig


def settings(**changes: Any) -> RuntimeConfig:
    values = {"served_names": ("demo",), "model": "demo", "namespace": "team"}
    return runtime_config(**values | changes)


def engine_of(backend: Backend | None = None, **changes: Any) -> InProcessEngine:
    return InProcessEngine(settings(**changes), backend or FakeEmbedder())


async def post(site: Site, body: Any, path: str = "/v1/embeddings") -> Reply:
    return await raw(site.port, "POST", path, orjson.dumps(body))


async def error_of(site: Site, body: Any, path: str = "/v1/embeddings") -> dict[str, Any]:
    reply = await post(site, body, path)
    assert reply.status == 400, reply.body
    error: dict[str, Any] = orjson.loads(reply.body)["error"]
    return error


def numbers(shown: Any) -> NDArray[np.float32]:
    """A vector in either encoding; the client decodes base64 only where it asked for it itself."""
    if isinstance(shown, str):
        return np.frombuffer(base64.b64decode(shown), "<f4")
    return np.asarray(shown, np.float32)


@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
async def test_a_client_gets_a_vector_of_length_one_for_each_input(encoding_format: Any) -> None:
    more = {} if encoding_format is None else {"encoding_format": encoding_format}
    async with running(engine_of(), settings()) as site, site.client(strict=False) as client:
        answer = await client.embeddings.create(model="demo", input=["one", "three"], **more)
    assert [item.index for item in answer.data] == [0, 1]
    vectors = [numbers(item.embedding) for item in answer.data]
    assert all(vector.shape == (WIDTH,) for vector in vectors)
    assert [np.linalg.norm(vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-6)
    # Two texts of 3 and 5 bytes, each after the BOS token.
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (10, 10)
    assert (answer.object, answer.model) == ("list", "demo")


async def test_text_and_token_ids_in_every_form_give_the_same_vectors() -> None:
    async with running(engine_of(), settings()) as site:
        forms: list[Any] = [[1, 2, 3], [[1, 2, 3], [4]]]
        replies = [orjson.loads((await post(site, ask(form))).body) for form in forms]
        texts = [orjson.loads((await post(site, ask(form))).body) for form in ("a", ["a", "b"])]
    assert replies[0]["data"][0] == replies[1]["data"][0]
    assert texts[0]["data"][0] == texts[1]["data"][0]
    assert len(replies[1]["data"]) == len(texts[1]["data"]) == 2


def ask(value: Any, **more: Any) -> dict[str, Any]:
    return {"model": "demo", "input": value, **more}


async def test_a_thousand_inputs_pass_through_a_queue_of_four() -> None:
    few: dict[str, Any] = {"max_waiting": 3, "parallel": 1}
    async with running(engine_of(**few), settings(**few)) as site:
        texts = [f"text {number}" for number in range(1000)]
        reply = await post(site, ask(texts))
        again = await asyncio.gather(*(post(site, ask(texts[:20])) for _ in range(2)))
    data = orjson.loads(reply.body)["data"]
    assert [item["index"] for item in data] == list(range(1000))
    assert len({tuple(item["embedding"]) for item in data}) == 1000
    # Two at once share the queue: each has one input running at least, or is told to come back.
    assert {one.status for one in again} <= {200, 429}
    assert any(orjson.loads(one.body).get("data") == data[:20] for one in again)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "demo"}, "input", "required"),
        (ask([]), "input", "at least 1"),
        (ask([1, -1]), "input[1]", "greater than or equal to 0"),
        (ask([1, 999_999]), "input", "vocabulary of"),
        (ask([[1], [2] * 257]), "input[1]", "257 tokens, but the context holds 256"),
        (ask("x" * 300), "input", "301 tokens, but the context holds 256"),
        (ask("x", encoding_format="int8"), "encoding_format", "float"),
        (ask("x", dimensions=4), "dimensions", "dimensions is 4, but this model's vectors have 8"),
        (ask("x", dimensions=0), "dimensions", "greater"),
        (ask(["x"] * 2049), "input", "at most 2048"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(
    body: Any, param: str, words: str
) -> None:
    async with running(engine_of(), settings()) as site:
        error = await error_of(site, body)
    assert error["param"] == param
    assert words in error["message"]


async def test_the_models_own_dimensions_may_be_named() -> None:
    async with running(engine_of(), settings()) as site:
        assert (await post(site, ask("x", dimensions=WIDTH))).status == 200


async def test_a_decoder_embeds_nothing_and_an_encoder_writes_nothing() -> None:
    async with running(engine_of(FakeBackend()), settings()) as site:
        error = await error_of(site, ask("x"))
        assert error["param"] == "model"
        assert "gives no embeddings" in error["message"]
    async with running(engine_of(), settings()) as site:
        turns = [{"role": "user", "content": "hi"}]
        for path, body in (
            ("/v1/chat/completions", {"model": "demo", "messages": turns}),
            ("/v1/completions", {"model": "demo", "prompt": "hi"}),
        ):
            assert "use /v1/embeddings" in (await error_of(site, body, path))["message"]
        report = orjson.loads((await raw(site.port, "GET", "/v1/runtime")).body)
    found = report["capabilities"]
    assert (found["model_class"], found["can_embed"], found["pooling"]) == ("encoder", True, "mean")


async def test_a_broken_engine_is_an_error_of_ours() -> None:
    backend = FakeEmbedder(faults={0: Fault(error="llama.cpp broke")})
    async with running(engine_of(backend), settings()) as site, site.client(strict=False) as client:
        with pytest.raises(openai.InternalServerError, match=r"llama\.cpp broke"):
            await client.embeddings.create(model="demo", input=["a", "b"])


async def test_a_real_encoder_finds_equal_texts_equal(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    MODELS["bert"](file)
    real = settings(model_path=str(file), threads=1)
    async with running(ChildEngine(real), real) as site, site.client(strict=False) as client:
        answer = await client.embeddings.create(
            model="demo", input=["a llama climbs", "a llama climbs", "the pod sleeps"]
        )
    same, again, other = (np.asarray(item.embedding) for item in answer.data)
    assert same @ again == pytest.approx(1, abs=1e-5)
    assert same @ other < 0.999
