"""Models whose cells cannot be cut reuse whole states, and answer as if they did not."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import GREEDY, Answer, answer_of, runtime_config
from support.runtime_http import until
from support.tiny_models import MODELS
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import Request

if TYPE_CHECKING:
    from pathlib import Path

HOST_BYTES = 64 * 1024 * 1024
NAMES = ["mamba", "lfm2", "gemma3"]


def tokens_of(seed: int, count: int) -> tuple[int, ...]:
    chance = random.Random(seed)
    return tuple(chance.randrange(256) for _ in range(count))


def ask(name: str, tokens: tuple[int, ...], **changes: Any) -> Request:
    return Request(id=name, prompt_tokens=tokens, sampling=GREEDY, max_tokens=20, **changes)


async def run(file: Path, turns: list[list[Request]], **kv: Any) -> tuple[list[Answer], Any]:
    """Answers of requests that come in turns, each turn's together; and the cache's report."""
    config = runtime_config(
        model_path=str(file),
        threads=1,
        context_tokens=512,
        parallel=2,
        kv={"block_tokens": 16, **kv},
    )
    engine = InProcessEngine(config, LlamaBackend())
    await engine.start()
    answers = []
    for turn in turns:
        answers += await asyncio.gather(*(answer_of(engine, request) for request in turn))
    # The last report is sent when nothing is left to do.
    asked = sum(len(request.prompt_tokens) for turn in turns for request in turn)
    await until(lambda: engine.report.cache.queried_tokens >= asked)
    await until(lambda: not engine.report.sequences)
    await engine.close()
    return answers, engine.report.cache


def cached(answer: Answer) -> int:
    return answer.ends[0].num_cached_tokens


@pytest.mark.parametrize("name", NAMES)
async def test_prompts_that_share_a_beginning_share_its_state(tmp_path: Path, name: str) -> None:
    MODELS[name](tmp_path / "m.gguf")
    shared = tokens_of(0, 200)
    prompts = [shared + tokens_of(number, 60) for number in range(1, 7)]
    turns = [[ask(f"r{number}", prompt)] for number, prompt in enumerate(prompts)]
    plain, _ = await run(tmp_path / "m.gguf", turns)
    kept, report = await run(
        tmp_path / "m.gguf", turns, host_bytes=HOST_BYTES, checkpoint_tokens=64
    )
    assert [answer.facts for answer in kept] == [answer.facts for answer in plain]
    # 192 is the last multiple of 64 within the 200 tokens that they share.
    assert [cached(answer) for answer in kept] == [0] + [192] * 5
    assert [cached(answer) for answer in plain] == [0] * 6
    assert report.reuse == "checkpoints"
    assert next(tier for tier in report.tiers if tier.name == "host").hits == 5


@pytest.mark.parametrize("name", NAMES)
async def test_a_state_is_kept_where_prompts_part(tmp_path: Path, name: str) -> None:
    MODELS[name](tmp_path / "m.gguf")
    shared = tokens_of(0, 200)
    requests = [ask(f"r{n}", shared + tokens_of(n, 60)) for n in range(1, 5)]
    turns = [*[[one] for one in requests], _renamed(requests)]
    plain, _ = await run(tmp_path / "m.gguf", turns)
    kept, _ = await run(tmp_path / "m.gguf", turns, host_bytes=HOST_BYTES, checkpoint_tokens=4096)
    assert [answer.facts for answer in kept] == [answer.facts for answer in plain]
    # No interval fits: the second stops where it parts from the first; at last each finds its own.
    assert [cached(answer) for answer in kept] == [0, 0, 192, 192] + [256] * 4


@pytest.mark.parametrize("name", NAMES)
async def test_the_next_turn_of_a_conversation_goes_on_near_its_end(
    tmp_path: Path, name: str
) -> None:
    MODELS[name](tmp_path / "m.gguf")
    history = tokens_of(1, 150)
    more = tokens_of(2, 30)
    # Somebody else's long prompt runs in between, so that no slot still holds the history.
    others = [[ask(f"o{n}", tokens_of(50 + n, 100)) for n in range(2)]]
    first = [ask("first", history)]
    turns = [first, *others, [ask("second", history + more)]]
    plain, _ = await run(tmp_path / "m.gguf", turns)
    kept, _ = await run(tmp_path / "m.gguf", turns, host_bytes=HOST_BYTES, checkpoint_tokens=4096)
    assert [answer.facts for answer in kept] == [answer.facts for answer in plain]
    # No interval fits, but the last whole block of the first prompt was kept.
    assert cached(kept[-1]) == 149 // 16 * 16


@pytest.mark.parametrize("name", NAMES)
async def test_clients_at_once_get_what_each_gets_alone(tmp_path: Path, name: str) -> None:
    MODELS[name](tmp_path / "m.gguf")
    shared = tokens_of(3, 100)
    together = [ask(f"t{n}", shared[: 20 * n] + tokens_of(n, 40)) for n in range(6)]
    alone = [[request] for request in together]
    kv = {"host_bytes": HOST_BYTES, "checkpoint_tokens": 32}
    expected, _ = await run(tmp_path / "m.gguf", alone)
    found, _ = await run(tmp_path / "m.gguf", [together], **kv)
    again, _ = await run(
        tmp_path / "m.gguf", [*alone, *[[one] for one in _renamed(together)]], **kv
    )
    facts = [answer.facts for answer in expected]
    assert [answer.facts for answer in found] == facts
    assert [answer.facts for answer in again] == facts * 2


def _renamed(requests: list[Request]) -> list[Request]:
    return [ask(f"again-{request.id}", request.prompt_tokens) for request in requests]


async def test_the_number_of_states_is_a_setting_with_effect(tmp_path: Path) -> None:
    MODELS["mamba"](tmp_path / "m.gguf")
    prompts = [tokens_of(number, 100) for number in range(5)]
    turns = [[ask(f"r{number}", prompt)] for number, prompt in enumerate(prompts)]
    for count in (0, 3):
        kv = {"host_bytes": HOST_BYTES, "checkpoint_tokens": 4096, "checkpoint_count": count}
        _, report = await run(tmp_path / "m.gguf", turns, **kv)
        host = next(tier for tier in report.tiers if tier.name == "host")
        assert host.blocks == count
        assert bool(host.used_bytes) == bool(count)


async def test_tenants_do_not_share_states(tmp_path: Path) -> None:
    MODELS["mamba"](tmp_path / "m.gguf")
    prompt = tokens_of(0, 100)
    turns = [
        [ask("a", prompt, tenant="a")],
        [ask("x", tokens_of(1, 60)), ask("y", tokens_of(2, 60))],
        [ask("b", prompt, tenant="b")],
        [ask("x2", tokens_of(3, 60)), ask("y2", tokens_of(4, 60))],
        [ask("a2", prompt, tenant="a")],
    ]
    answers, _ = await run(tmp_path / "m.gguf", turns, host_bytes=HOST_BYTES, checkpoint_tokens=32)
    hits = {answer.ends[0].id: cached(answer) for answer in answers}
    assert (hits["b"], hits["a2"]) == (0, 96)
