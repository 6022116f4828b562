"""Text on models with positions of several numbers (M-RoPE), in the real llama.cpp.

llama.cpp writes larger cells for them, so blocks are cut otherwise (``kv/places.py``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from support import tiny_models
from support.engine_builders import Answer, answers_of, runtime_config, text_request
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import KvTiers
from terrace_runtime.engine.request import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import Request

GREEDY = SamplingParams(temperature=0, ignore_eos=True, logprobs=5)
COMMON = "the terraces of the valley were cut by hand, one above the other, "
PROMPTS = [COMMON + end for end in ("and maize grew", "and llamas climbed", "so water ran")]
OTHERS = [f"{n} another thing altogether, long enough to take a slot's cells" for n in range(4)]
answers = partial(answers_of, LlamaBackend)
each_model = pytest.mark.parametrize("model", ["qwen2vl", "qwen3vl"])
each_layout = pytest.mark.parametrize("unified", [False, True], ids=["split", "unified"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("placed")
    for name in ("qwen2vl", "qwen3vl"):
        tiny_models.MODELS[name](found / f"{name}.gguf")
    return found


def config(folder: Path, model: str, **changes: Any) -> RuntimeConfig:
    values: dict[str, Any] = {
        "model_path": str(folder / f"{model}.gguf"),
        "context_tokens": 256,
        "parallel": 2,
        "batch_tokens": 32,
        "threads": 1,
        "kv": KvTiers(block_tokens=8, host_bytes=1 << 26),
    }
    return runtime_config(**(values | changes))


def ask(name: str, text: str, **changes: Any) -> Request:
    return text_request(name, text, sampling=GREEDY, **{"max_tokens": 24, **changes})


async def alone(folder: Path, model: str, *texts: str) -> list[Answer]:
    """What each gets from an engine that keeps nothing."""
    settings = config(folder, model, kv=KvTiers(block_tokens=8), parallel=1)
    found = [await answers(settings, ask(f"alone-{n}", text)) for n, text in enumerate(texts)]
    return [one for (one,) in found]


def check(found: list[Answer], expected: list[Answer]) -> None:
    """Each got what it gets alone."""
    for one, other in zip(found, expected, strict=True):
        assert one.agrees(other)


@each_model
@each_layout
async def test_together_equals_alone(folder: Path, model: str, *, unified: bool) -> None:
    settings = config(folder, model, kv_unified=unified)
    requests = [ask(f"r{n}", text) for n, text in enumerate([*PROMPTS, *OTHERS])]
    found = await answers(settings, *requests, together=True)
    check(found, await alone(folder, model, *PROMPTS, *OTHERS))
    assert len({one.facts for one in found}) > 4, "equal answers prove nothing"


@each_model
@each_layout
async def test_blocks_come_back_from_host_memory(
    folder: Path, model: str, *, unified: bool
) -> None:
    settings = config(folder, model, kv_unified=unified)
    order = [PROMPTS[0], *OTHERS, PROMPTS[0], PROMPTS[1]]
    requests = [ask(f"r{n}", text) for n, text in enumerate(order)]
    found = await answers(settings, *requests)
    check(found, await alone(folder, model, *order))
    again, other = found[-2].ends[0], found[-1].ends[0]
    assert again.cached_tier == "host"
    assert again.num_cached_tokens >= len(PROMPTS[0]) // 8 * 8 - 8
    assert other.num_cached_tokens >= len(COMMON) // 8 * 8


@each_model
@each_layout
async def test_blocks_come_back_from_the_disk_after_a_restart(
    folder: Path, tmp_path: Path, model: str, *, unified: bool
) -> None:
    kv = KvTiers(
        block_tokens=8, host_bytes=1 << 20, disk_bytes=1 << 26, disk_path=str(tmp_path / "kv")
    )
    settings = config(folder, model, kv=kv, kv_unified=unified)
    (first,) = await answers(settings, ask("a", PROMPTS[0]))
    again, other = await answers(settings, ask("b", PROMPTS[0]), ask("c", PROMPTS[2]))
    expected = await alone(folder, model, PROMPTS[0], PROMPTS[2])
    check([first, again, other], [expected[0], *expected])
    assert again.ends[0].cached_tier == "disk"
    assert again.ends[0].num_cached_tokens >= len(PROMPTS[0]) // 8 * 8 - 8
    assert other.ends[0].num_cached_tokens >= len(COMMON) // 8 * 8
