"""Prompts of 4k and 16k tokens on the real llama.cpp: chunked, in the memory that was planned."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from support.engine_builders import GREEDY, answer_of, runtime_config, text_request
from support.runtime_http import until
from support.tiny_model import HEAD, LAYERS
from support.tiny_models import llama
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import FinishReason, InvalidRequestError, Request

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig

TRAINED = 32_768
ROW_BYTES = 2 * HEAD * 2 * LAYERS
"""KV of one token: one head's keys and values of 16 bits in every layer."""
MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    llama(path, TRAINED)
    return path


def config_of(model: Path, context_tokens: int, **changes: int) -> RuntimeConfig:
    values = {"parallel": 2, "batch_tokens": 512, "prefill_tokens": 256, "threads": 2} | changes
    return runtime_config(model_path=str(model), context_tokens=context_tokens, **values)


def prompt_of(length: int) -> tuple[int, ...]:
    draw = random.Random(length)
    return tuple(draw.randrange(256) for _ in range(length))


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index("RssAnon:") + 1])


class HeldBackend(LlamaBackend):
    """Decodes only while ``may_go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go, self.is_asked = threading.Event(), threading.Event()
        self.may_go.set()

    @override
    def decode(self) -> int:
        self.is_asked.set()
        assert self.may_go.wait(60)
        return super().decode()


@pytest.mark.parametrize("length", [4_000, 16_000])
async def test_a_long_prompt_is_computed_in_chunks_within_the_memory_taken_at_the_start(
    model: Path, length: int
) -> None:
    backend = HeldBackend()
    engine = InProcessEngine(config_of(model, length + 512), backend)
    await engine.start()
    runner = engine._runner
    assert runner is not None
    cells = 2 * (-(-(length + 512) // 256) * 256)
    assert engine.info.kv_bytes == pytest.approx(cells * ROW_BYTES, rel=0.02)
    before = anonymous_bytes()
    long = Request(id="long", prompt_tokens=prompt_of(length), sampling=GREEDY, max_tokens=8)
    short = text_request("short", "hello", max_tokens=8, sampling=GREEDY)
    done: list[str] = []

    async def follow(request: Request) -> FinishReason:
        answer = await answer_of(engine, request)
        done.append(request.id)
        return answer.finish

    # A step of somebody else lasts until both are there, however late each was tokenized.
    backend.may_go.clear()
    backend.is_asked.clear()
    before_them = asyncio.create_task(answer_of(engine, text_request("first", max_tokens=1)))
    await until(backend.is_asked.is_set)
    both = asyncio.gather(follow(long), follow(short))
    await until(lambda: len(runner._inbox) == 2)
    backend.may_go.set()
    await before_them
    reasons = await both
    stats = engine.stats
    await engine.close()
    assert set(reasons) <= {FinishReason.LENGTH, FinishReason.STOP}
    # The stream beside it went on while the prompt was computed, a chunk in each step.
    assert done == ["short", "long"]
    assert stats.steps > length / 512
    # The buffers of the plan fill up, and beside them there are the prompt's own tokens.
    planned = (engine.info.kv_bytes or 0) + (engine.info.compute_bytes or 0)
    assert anonymous_bytes() - before < planned + 8 * MIB


async def test_the_size_of_chunks_does_not_change_a_long_prompts_answer(model: Path) -> None:
    prompt = prompt_of(4_000)
    texts = set()
    for prefill in (64, 512):
        engine = InProcessEngine(config_of(model, 4_608, prefill_tokens=prefill), LlamaBackend())
        await engine.start()
        request = Request(id="r", prompt_tokens=prompt, sampling=GREEDY, max_tokens=24)
        texts.add((await answer_of(engine, request)).text)
        await engine.close()
    assert len(texts) == 1


async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(model: Path) -> None:
    engine = InProcessEngine(config_of(model, 4_096), LlamaBackend())
    await engine.start()
    request = Request(id="r", prompt_tokens=prompt_of(4_096), sampling=GREEDY)
    with pytest.raises(InvalidRequestError, match=r"has 4096 tokens, but the context holds 4096"):
        await answer_of(engine, request)
    await engine.close()


def test_a_context_beyond_the_models_own_is_refused_with_both_numbers(model: Path) -> None:
    with pytest.raises(BackendError, match="is 40000, but this model was trained for 32768"):
        LlamaBackend().load(config_of(model, 40_000))
