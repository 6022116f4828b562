"""Embeddings: inputs share batches, vectors do not depend on it, and everyone ends once."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from support.engine_builders import Clock, answer_of, runtime_config, text_request
from support.tiny_models import MODELS
from terrace_runtime.backend import DECODE_NO_ROOM, BackendError
from terrace_runtime.backend.fake import Fault
from terrace_runtime.backend.fake_classes import WIDTH, FakeEmbedder, FakeEncoderDecoder
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.embedding import EmbeddingCore, unit
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.process import ChildEngine
from terrace_runtime.engine.request import FinishReason, InvalidRequestError, Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.client import EngineClient
    from terrace_runtime.engine.request import RequestOutput

CONFIG = runtime_config(context_tokens=128, batch_tokens=64)


def vector_of(output: RequestOutput) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(output.embedding), "<f4")


def ask(name: str, tokens: Sequence[int], **changes: Any) -> Request:
    return Request(id=name, prompt_tokens=tuple(tokens), embed=True, **changes)


def inputs(count: int, longest: int, *, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    sizes = [chance.randint(1, longest) for _ in range(count)]
    return [[chance.randrange(5, 40) for _ in range(size)] for size in sizes]


class Driver:
    """An EmbeddingCore on a fake backend, stepped by the test."""

    def __init__(self, backend: FakeEmbedder, config: RuntimeConfig = CONFIG) -> None:
        self.backend = backend
        self.config = config
        self.clock = Clock()
        backend.load(config)
        self.core = EmbeddingCore(backend, config, clock=self.clock)
        self.ends: dict[str, RequestOutput] = {}

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.core.add(make_sequence(request, self.backend, self.core.table, self.config))

    def step(self) -> None:
        for output in self.core.step():
            assert output.id not in self.ends, "every request ends once"
            assert output.finish is not None
            self.ends[output.id] = output

    def run(self) -> dict[str, RequestOutput]:
        steps = 0
        while self.core.has_work:
            self.step()
            steps += 1
            assert steps < 1000
        return self.ends


@pytest.mark.parametrize("model_class", ["encoder", "decoder"])
def test_inputs_get_the_vectors_that_they_get_alone(
    model_class: Literal["encoder", "decoder"],
) -> None:
    prompts = inputs(60, 128)
    driver = Driver(FakeEmbedder(model_class=model_class))
    driver.add(*(ask(str(number), tokens) for number, tokens in enumerate(prompts)))
    ends = driver.run()
    for number, tokens in enumerate(prompts):
        lonely = Driver(FakeEmbedder(model_class=model_class))
        lonely.add(ask("x", tokens))
        assert ends[str(number)].embedding == lonely.run()["x"].embedding
        assert ends[str(number)].num_prompt_tokens == len(tokens)
    assert driver.backend.num_cells == 0 or model_class == "encoder"
    total = sum(map(len, prompts))
    assert driver.core.stats.prompt_tokens == total
    assert driver.backend.decodes <= 2 * total // min(driver.backend.batch.capacity, 128) + 1


def test_short_inputs_share_a_step_and_a_long_one_goes_alone() -> None:
    config = runtime_config(context_tokens=256, batch_tokens=256)
    driver = Driver(FakeEmbedder(), config)
    driver.add(*(ask(str(n), [n] * 30) for n in range(8)), ask("long", [9] * 250))
    driver.run()
    # Four times 30 tokens fit into 128, twice; 250 tokens are more than that.
    assert driver.backend.decodes == 3
    assert driver.core.stats.batch_tokens == 250


def test_a_vector_has_length_one() -> None:
    driver = Driver(FakeEmbedder())
    driver.add(ask("a", [1, 2, 3]))
    vector = vector_of(driver.run()["a"])
    assert vector.shape == (WIDTH,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_a_vector_of_no_numbers_is_an_error_and_not_an_answer() -> None:
    for wrong in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        assert unit(np.asarray(wrong, np.float32)) is None


def test_an_input_longer_than_a_batch_comes_in_steps_where_only_its_end_counts() -> None:
    driver = Driver(FakeEmbedder(model_class="decoder"))
    driver.add(ask("long", [7] * 128), ask("short", [8] * 5))
    driver.step()
    driver.step()
    assert list(driver.ends) == ["long"]
    driver.run()
    assert driver.backend.decodes == 3


def test_urgent_inputs_go_first_and_tenants_share() -> None:
    driver = Driver(FakeEmbedder())
    driver.add(*(ask(f"a{n}", [1] * 100, tenant="a", priority=1) for n in range(4)))
    driver.add(ask("b", [2] * 100, tenant="b", priority=1), ask("now", [3] * 100, tenant="a"))
    driver.run()
    order = list(driver.ends)
    assert order[0] == "now"
    assert order.index("b") == 1


@pytest.mark.parametrize("steps", [0, 1])
def test_a_cancelled_input_ends_at_once_and_gives_its_cells_back(steps: int) -> None:
    driver = Driver(FakeEmbedder(model_class="decoder"))
    driver.add(ask("a", [1] * 128), ask("b", [2] * 3))
    for _ in range(steps):
        driver.step()
    driver.core.abort("a")
    driver.core.abort("a")
    driver.core.abort("unknown")
    ends = driver.run()
    assert (ends["a"].finish, ends["b"].finish) == (FinishReason.ABORT, FinishReason.STOP)
    assert driver.backend.num_cells == 0


def test_each_end_says_how_long_an_input_waited() -> None:
    driver = Driver(FakeEmbedder())
    driver.add(ask("long", [7] * 100), ask("waits", [8] * 100))
    driver.step()
    driver.clock.now += 5
    ends = driver.run()
    assert [ends[name].queued_s for name in ("long", "waits")] == [0, 5]


def test_a_deadline_ends_an_input_that_waits() -> None:
    driver = Driver(FakeEmbedder())
    driver.add(ask("a", [1] * 100, timeout_s=5), ask("b", [2] * 100))
    driver.clock.now = 6
    ends = driver.run()
    assert (ends["a"].finish, ends["b"].finish) == (FinishReason.TIMEOUT, FinishReason.STOP)


def test_all_end_when_the_engine_stops() -> None:
    driver = Driver(FakeEmbedder())
    driver.add(*(ask(str(n), [1] * 100) for n in range(5)))
    driver.core.abort_all()
    driver.step()
    assert {end.finish for end in driver.ends.values()} == {FinishReason.ABORT}
    assert not driver.core.has_work


def test_a_broken_backend_is_an_error() -> None:
    driver = Driver(FakeEmbedder(faults={0: Fault(code=DECODE_NO_ROOM)}))
    driver.add(ask("a", [1]))
    with pytest.raises(BackendError, match="decode returned code 1"):
        driver.step()


async def refused(engine: EngineClient, request: Request) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        await answer_of(engine, request)
    return caught.value


async def test_what_the_class_cannot_do_is_refused_with_the_reason() -> None:
    encoder = InProcessEngine(CONFIG, FakeEmbedder())
    await encoder.start()
    assert "use /v1/embeddings" in str(await refused(encoder, text_request("t")))
    long = await refused(encoder, ask("long", [1] * 129))
    assert "has 129 tokens, but the context holds 128" in str(long)
    await encoder.close()
    decoder = InProcessEngine(CONFIG, FakeEncoderDecoder())
    await decoder.start()
    error = await refused(decoder, ask("e", [1]))
    assert "no embeddings" in str(error)
    assert error.param == "model"
    await decoder.close()


async def test_an_encoder_with_a_decoder_serves_one_after_the_other() -> None:
    config = runtime_config(parallel=4, context_tokens=128)
    engine = InProcessEngine(config, FakeEncoderDecoder())
    await engine.start()
    requests = [text_request(f"r{n}", f"prompt number {n}", max_tokens=12) for n in range(6)]
    alone = [(await answer_of(engine, request)).facts for request in requests]
    together = await asyncio.gather(*(answer_of(engine, request) for request in requests))
    assert [answer.facts for answer in together] == alone
    assert len({text for text, *_ in alone}) == len(alone), "each depends on its prompt"
    assert together[0].ends[0].num_prompt_tokens == len("prompt number 0")
    await engine.close()


# The real llama.cpp ------------------------------------------------------------------------------


async def vectors(engine: EngineClient, requests: list[Request]) -> NDArray[np.float32]:
    answers = await asyncio.gather(*(answer_of(engine, request) for request in requests))
    assert {answer.finish for answer in answers} == {FinishReason.STOP}
    return np.stack([vector_of(answer.ends[0]) for answer in answers])


@pytest.mark.parametrize("name", ["bert", "qwen3-embedding"])
async def test_real_vectors_are_the_same_alone_and_in_a_batch(tmp_path: Path, name: str) -> None:
    file = tmp_path / "m.gguf"
    MODELS[name](file)
    config = runtime_config(model_path=str(file), threads=1, context_tokens=256)
    engine = InProcessEngine(config, LlamaBackend())
    await engine.start()
    prompts = inputs(40, 200, seed=3)
    many = [ask(f"m{n}", tokens) for n, tokens in enumerate(prompts)]
    together = await vectors(engine, [*many, ask("again", prompts[0])])
    alone = np.stack([(await vectors(engine, [request]))[0] for request in many])
    await engine.close()
    assert np.abs(together[:-1] - alone).max() < 1e-4
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(41), abs=1e-5)
    cosines = together @ together.T
    assert cosines[0, -1] == pytest.approx(1, abs=1e-5)
    others = cosines[:40, :40][~np.eye(40, dtype=bool)]
    assert others.max() < 0.9999, "different inputs have different vectors"


async def test_the_size_of_a_step_changes_no_real_vector(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    MODELS["qwen3-embedding"](file)
    prompts = inputs(12, 150, seed=5)
    found = []
    for batch, ubatch in ((512, 512), (64, 32)):
        config = runtime_config(
            model_path=str(file), threads=1, batch_tokens=batch, ubatch_tokens=ubatch
        )
        engine = InProcessEngine(config, LlamaBackend())
        await engine.start()
        found.append(await vectors(engine, [ask(str(n), one) for n, one in enumerate(prompts)]))
        await engine.close()
    assert np.abs(found[0] - found[1]).max() < 1e-4


async def test_real_text_is_embedded_between_the_encoders_own_marks(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    MODELS["bert"](file)
    engine = ChildEngine(runtime_config(model_path=str(file), threads=1))
    await engine.start()
    answer = await answer_of(engine, text_request("r", "a b c", embed=True, add_bos=True))
    await engine.close()
    # [CLS] a b c [SEP]
    assert answer.ends[0].num_prompt_tokens == 5
    assert vector_of(answer.ends[0]).shape == (64,)
    assert engine.info.capabilities.pooling == "mean"


async def test_a_real_encoder_with_a_decoder_answers_by_its_prompt(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    MODELS["t5"](file)
    config = runtime_config(model_path=str(file), threads=1, parallel=2)
    engine = InProcessEngine(config, LlamaBackend())
    await engine.start()
    requests = [text_request(f"r{n}", "terrace " * (n + 1), max_tokens=16) for n in range(3)]
    alone = [(await answer_of(engine, request)).facts for request in requests]
    together = await asyncio.gather(*(answer_of(engine, request) for request in requests))
    await engine.close()
    assert [answer.facts for answer in together] == alone
    assert len({text for text, *_ in alone}) == 3
