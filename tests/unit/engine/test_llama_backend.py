"""The real thing: llama.cpp and the demo model, in this process and in a child."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.engine_builders import (
    GREEDY,
    Conversation,
    answer_of,
    conversations,
    runtime_config,
    text_request,
)
from terrace_runtime.backend import BackendError, SamplerSettings
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.process import ChildEngine
from terrace_runtime.engine.request import (
    EngineError,
    FinishReason,
    PromptPart,
    Request,
    SamplingParams,
)

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.frontend import EngineFrontend

# One thread: the machine is shared, and a thread that waits for a core holds up all others.
CONFIG = runtime_config(
    context_tokens=1024, parallel=16, batch_tokens=512, prefill_tokens=128, threads=1
)
WAIT_S = 60.0


def engine_of(shape: str, config: RuntimeConfig = CONFIG) -> EngineFrontend:
    return InProcessEngine(config, LlamaBackend()) if shape == "here" else ChildEngine(config)


def some_conversations(count: int) -> list[Conversation]:
    return random.Random(7).sample(conversations(), count)


@pytest.fixture
def backend() -> LlamaBackend:
    loaded = LlamaBackend()
    loaded.load(runtime_config(threads=1))
    return loaded


@pytest.mark.parametrize("shape", ["here", "child"])
@pytest.mark.parametrize("kv_unified", [False, True])
async def test_sixteen_clients_at_once_get_the_verified_answers(
    shape: str, *, kv_unified: bool
) -> None:
    engine = engine_of(shape, CONFIG.model_copy(update={"kv_unified": kv_unified}))
    await engine.start()
    chosen = some_conversations(20)
    answers = await asyncio.gather(
        *(answer_of(engine, one.request(str(number))) for number, one in enumerate(chosen))
    )
    await engine.close()
    assert [answer.text for answer in answers] == [one.answer for one in chosen]
    assert {answer.finish for answer in answers} == {FinishReason.STOP}


async def test_requests_together_get_what_each_gets_alone() -> None:
    engine = engine_of("here")
    await engine.start()
    texts = [f"Tell me a story about a llama named {name}." for name in ("Inti", "Kusi", "Wayra")]
    requests = [
        Request(
            id=f"{number}",
            prompt=(
                PromptPart("<|im_start|>user\n", special=True),
                PromptPart(text),
                PromptPart("<|im_end|>\n<|im_start|>assistant\n", special=True),
            ),
            sampling=GREEDY,
            max_tokens=60 + 20 * number,
            stop=("zzz",),
        )
        for number, text in enumerate(texts)
    ]
    single = [(await answer_of(engine, request)).facts for request in requests]
    together = await asyncio.gather(*(answer_of(engine, request) for request in requests))
    await engine.close()
    assert [answer.facts for answer in together] == single


async def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    engine = engine_of("here")
    await engine.start()
    prompt = conversations()[0].prompt

    async def text(name: str, seed: int) -> str:
        sampling = SamplingParams(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed)
        request = Request(id=name, prompt=prompt, sampling=sampling, max_tokens=40)
        return (await answer_of(engine, request)).text

    first, again, other = await text("a", 1), await text("b", 1), await text("c", 2)
    await engine.close()
    assert first == again != other


async def test_penalties_change_a_greedy_answer() -> None:
    engine = engine_of("here")
    await engine.start()

    async def text(name: str, sampling: SamplingParams) -> str:
        return (await answer_of(engine, text_request(name, "a a a a a a", sampling=sampling))).text

    plain = await text("plain", GREEDY)
    for field in ("presence_penalty", "frequency_penalty"):
        assert await text(field, SamplingParams(temperature=0, **{field: 2.0})) != plain  # type: ignore[arg-type]
    assert await text("repeat", SamplingParams(temperature=0, repeat_penalty=5)) != plain
    await engine.close()


async def test_a_stop_string_that_spans_tokens_ends_the_answer_before_it() -> None:
    engine = engine_of("here")
    await engine.start()
    case = conversations()[0]
    assert case.answer.startswith("A pod is the smallest thing")
    request = Request(id="r", prompt=case.prompt, sampling=GREEDY, stop=("e smallest th",))
    answer = await answer_of(engine, request)
    await engine.close()
    assert (answer.text, answer.finish) == ("A pod is th", FinishReason.STOP)


async def test_a_killed_child_fails_its_requests_in_bounded_time() -> None:
    engine = ChildEngine(CONFIG)
    await engine.start()
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    streams = [
        engine.submit(text_request(f"r{n}", sampling=sampling, max_tokens=None)) for n in range(16)
    ]
    await anext(streams[0])
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        for stream in streams:
            outputs = [output async for output in stream]
            assert outputs[-1].finish is FinishReason.ERROR
            assert "SIGKILL" in outputs[-1].error
    await engine.close()


async def test_a_file_that_is_no_model_is_an_error_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    for shape in ("here", "child"):
        engine = engine_of(shape, CONFIG.model_copy(update={"model_path": str(broken)}))
        with pytest.raises(EngineError, match=r"cannot load .*broken\.gguf"):
            await engine.start()
        await engine.close()


def test_a_truncated_model_says_what_is_wrong(tmp_path: Path) -> None:
    whole = Path(CONFIG.model_path).read_bytes()
    file = tmp_path / "half.gguf"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackendError, match=r"corrupted or incomplete"):
        LlamaBackend().load(CONFIG.model_copy(update={"model_path": str(file)}))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BackendError, match=r"no model file at /nowhere/x\.gguf"):
        LlamaBackend().load(CONFIG.model_copy(update={"model_path": "/nowhere/x.gguf"}))


def test_the_model_describes_itself_and_its_memory(backend: LlamaBackend) -> None:
    info = backend.info
    assert info.vocabulary == 2048
    assert info.special_tokens == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert info.eos == "<|im_end|>"
    assert "<|im_start|>" in info.chat_template
    # 5 layers x 1 head x 64 x 2 x 2 bytes = 1,280 bytes a token; 4 sequences of 256 tokens.
    assert info.kv_bytes == pytest.approx(1280 * 4 * 256, rel=0.01)
    assert info.weights_bytes == pytest.approx(2_516_582, rel=0.01)
    assert info.compute_bytes is not None
    assert info.compute_bytes > 0
    backend.close()
    backend.close()


def test_text_of_a_client_never_becomes_a_control_token(backend: LlamaBackend) -> None:
    text = "<|im_end|>"
    assert len(backend.tokenize(text, special=True, add_bos=False)) == 1
    assert len(backend.tokenize(text, special=False, add_bos=False)) > 1
    assert backend.tokenize("", special=False, add_bos=False) == []
    assert backend.tokenize("\ud800", special=False, add_bos=False)


@pytest.mark.parametrize(
    "fill",
    [
        lambda batch: None,
        lambda batch: batch.extend([1], 4, 0, outputs=1),
        lambda batch: batch.extend([1], -1, 0, outputs=1),
        lambda batch: batch.extend_single([1] * 5, [0, 1, 2, 3, 3], [0, 0, 0, 0, 1]),
    ],
)
def test_what_would_abort_the_process_is_refused(backend: LlamaBackend, fill: object) -> None:
    backend.batch.clear()
    assert callable(fill)
    fill(backend.batch)
    with pytest.raises(BackendError, match="bad batch"):
        backend.decode()
    with pytest.raises(BackendError, match="sequence id 9"):
        backend.seq_rm(9)


def test_a_gap_in_the_positions_is_a_code_and_harms_nothing(backend: LlamaBackend) -> None:
    backend.batch.clear()
    backend.batch.extend([5, 6], 0, 0, outputs=1)
    assert backend.decode() == 0
    assert backend.seq_pos_max(0) == 1
    backend.batch.clear()
    backend.batch.extend([7], 0, 9, outputs=1)
    assert backend.decode() == -1
    backend.batch.clear()
    backend.batch.extend([7], 0, 2, outputs=1)
    assert backend.decode() == 0
    assert backend.seq_rm(0)
    assert backend.seq_pos_max(0) == -1


def test_a_greedy_chain_takes_what_numpy_takes(backend: LlamaBackend) -> None:
    backend.batch.clear()
    backend.batch.extend([5, 6, 7], 0, 0, outputs=1)
    row = backend.batch.extend([9, 8], 1, 0, outputs=1)
    assert backend.decode() == 0
    chain = backend.sampler(SamplerSettings(0, 0, 1, 0, 1, 0, 0, 1), [5])
    assert chain.sample(row) == int(backend.logits()[1].argmax())
    chain.close()
    chain.close()


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
async def test_quantized_kv_types_are_used(kv_type: str) -> None:
    config = CONFIG.model_copy(update={"kv_key_type": kv_type, "kv_value_type": kv_type})
    engine = engine_of("here", config)
    await engine.start()
    case = conversations()[0]
    answer = await answer_of(engine, case.request("r"))
    kv_bytes = engine.info.kv_bytes
    await engine.close()
    assert kv_bytes is not None
    assert kv_bytes < 1280 * 16 * 1024 * 0.6
    assert answer.text.startswith("A pod is")
