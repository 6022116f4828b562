"""Images from the client to llama.cpp and back, on a tiny model and tiny projectors."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support import tiny_models, tiny_projectors
from support.engine_builders import Answer, answer_of, answers_of, runtime_config, text_request
from support.mtmd_reference import Reference
from support.pictures import data_url, file_of, image_request, picture
from support.runtime_http import running
from terrace_runtime.api.chat_template import TemplateRenderer
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import KvTiers
from terrace_runtime.engine.process import ChildEngine
from terrace_runtime.engine.request import FinishReason, ImagePart, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import openai

    from terrace_runtime.contract import RuntimeConfig

KINDS: dict[str, Callable[[Path], Path]] = {
    "llava": tiny_projectors.llava,
    "sliced": tiny_projectors.sliced,
    "gemma3": tiny_projectors.gemma3,
    "qwen2vl": tiny_projectors.qwen2vl,
    "qwen2.5vl": tiny_projectors.qwen25vl,
    "qwen3vl": tiny_projectors.qwen3vl,
}
PLACED = [("qwen2vl", "qwen2vl"), ("qwen2vl", "qwen2.5vl"), ("qwen3vl", "qwen3vl")]
"""Models whose images have positions in two dimensions, and their projectors."""
MODELS = ["llama", "gemma3", "lfm2", "mamba", "qwen2vl", "qwen3vl", "qwen35"]
ONE, OTHER = picture(1, 100, 60), picture(2, 100, 60)
BEFORE, AFTER = "a llama climbs the terrace of pods", " and looks down"
LIKELY = SamplingParams(temperature=0, ignore_eos=True, logprobs=5)
HOST = KvTiers(block_tokens=8, host_bytes=1 << 26, checkpoint_tokens=16)
answers = partial(answers_of, LlamaBackend)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("vision")
    for name in MODELS:
        tiny_models.MODELS[name](found / f"{name}.gguf")
    for name, write in KINDS.items():
        write(found / f"eyes-{name}.gguf")
    return found


def config(
    folder: Path, eyes: str = "llava", model: str = "llama", **changes: Any
) -> RuntimeConfig:
    values: dict[str, Any] = {
        "model_path": str(folder / f"{model}.gguf"),
        "projector_path": str(folder / f"eyes-{eyes}.gguf"),
        "projector_digest": "3" * 64,
        "context_tokens": 512,
        "batch_tokens": 32,
        "ubatch_tokens": 32,
        "threads": 1,
        "kv": HOST,
    }
    return runtime_config(**(values | changes))


def ask(name: str, *parts: str | ImagePart, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "sampling": LIKELY,
        "max_tokens": 12,
    }
    return image_request(name, *(parts or (BEFORE, ONE, AFTER)), **(values | changes))


@pytest.mark.parametrize(
    ("model", "eyes"),
    [("llama", "llava"), ("llama", "sliced"), ("llama", "gemma3"), *PLACED, ("qwen35", "qwen2vl")],
)
async def test_the_first_tokens_odds_are_those_of_libmtmd(
    folder: Path, model: str, eyes: str
) -> None:
    settings = config(folder, eyes, model)
    reference = Reference(folder / f"{model}.gguf", folder / f"eyes-{eyes}.gguf", 32)
    shown = [ONE, OTHER, picture(3, 40, 90)]
    expected = []
    for image in shown:
        pixels = np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)
        logits = reference.logits(BEFORE, pixels, AFTER).astype(float)
        expected.append(logits - np.log(np.exp(logits).sum()))
    reference.close()
    requests = [
        ask(str(n), BEFORE, image, AFTER, max_tokens=1, sampling=LIKELY)
        for n, image in enumerate(shown)
    ]
    for answer, logprobs in zip(await answers(settings, *requests), expected, strict=True):
        (token,) = answer.ends[0].logprobs
        assert token.logprob == pytest.approx(logprobs.max(), abs=1e-3)
        theirs = sorted(logprobs)[::-1][:5]
        assert [one.logprob for one in token.top] == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    ("model", "eyes"),
    [
        ("llama", "llava"),
        ("llama", "sliced"),
        ("llama", "gemma3"),
        ("gemma3", "gemma3"),
        ("lfm2", "llava"),
        ("mamba", "llava"),
        *PLACED,
        ("qwen35", "qwen2vl"),
    ],
)
async def test_different_images_give_different_answers_and_a_second_look_the_same(
    folder: Path, eyes: str, model: str
) -> None:
    settings = config(folder, eyes, model)
    first, other, again = await answers(
        settings,
        ask("a", max_tokens=1, sampling=LIKELY),
        ask("b", BEFORE, OTHER, AFTER, max_tokens=1, sampling=LIKELY),
        ask("c", max_tokens=1, sampling=LIKELY),
    )
    assert distance(first, other) > 0.005
    assert distance(first, again) < 0.002
    assert again.ends[0].num_cached_tokens > 0


def distance(one: Answer, other: Answer) -> float:
    """By how much the likeliest first tokens differ in their log probability."""
    ours, theirs = (
        {each.piece: each.logprob for each in answer.ends[0].logprobs[0].top}
        for answer in (one, other)
    )
    return max(abs(ours[piece] - theirs.get(piece, -99.0)) for piece in ours)


async def test_a_second_look_is_a_hit_in_the_cells(folder: Path) -> None:
    _, again = await answers(config(folder), ask("a"), ask("b"))
    rows = tiny_projectors.ROWS
    assert again.ends[0].num_prompt_tokens == len(BEFORE) + rows + len(AFTER)
    assert again.ends[0].num_cached_tokens >= len(BEFORE) + rows


@pytest.mark.parametrize(
    ("model", "eyes", "unified"),
    [
        ("llama", "llava", False),
        ("llama", "sliced", True),
        ("llama", "gemma3", False),
        ("llama", "gemma3", True),
        *((*pair, unified) for pair in PLACED for unified in (False, True)),
        ("qwen35", "qwen2vl", False),
    ],
)
async def test_together_equals_alone(folder: Path, model: str, eyes: str, *, unified: bool) -> None:
    settings = config(folder, eyes, model, kv_unified=unified)
    requests = [
        ask("a"),
        text_request(
            "b", "no image at all, but a long text to read", max_tokens=30, sampling=LIKELY
        ),
        ask("c", "x", OTHER, "y", ONE, "z"),
        ask("d", BEFORE, picture(4, 200, 90), AFTER),
        ask("e", OTHER, "begins with one"),
        ask("f"),
    ]
    together = await answers(settings, *requests, together=True)
    alone = await answers(settings, *requests)
    for one, other in zip(together, alone, strict=True):
        assert one.agrees(other)


@pytest.mark.parametrize("unified", [False, True], ids=["split", "unified"])
@pytest.mark.parametrize(("model", "eyes"), PLACED)
async def test_an_image_with_a_grid_is_found_again_in_slot_and_host_memory(
    folder: Path, model: str, eyes: str, *, unified: bool
) -> None:
    """What comes after the image stands right whatever brought it back."""
    settings = config(folder, eyes, model, kv_unified=unified, parallel=1)
    start = (BEFORE, ONE, "one question about it")
    others = [f"{n} something else that fills the slot" for n in range(3)]
    texts = [text_request(f"t{n}", text, sampling=LIKELY) for n, text in enumerate(others)]
    requests = [
        ask("a", *start, ", and then another", OTHER, "which differs"),
        ask("slot", *start, " asked twice"),
        *texts,
        ask("host", *start, " asked thrice, with", OTHER, "again"),
        ask("both", *start, ", and then another", OTHER, "which differs"),
    ]
    found = {r.id: a for r, a in zip(requests, await answers(settings, *requests), strict=True)}
    for request in requests:
        plain = config(folder, eyes, model, kv=KvTiers(block_tokens=8), parallel=1)
        (alone,) = await answers(plain, request)
        assert found[request.id].agrees(alone), request.id
    rows = len(BEFORE) + 24
    assert found["slot"].ends[0].cached_tier == "device"
    assert found["slot"].ends[0].num_cached_tokens >= rows
    host = found["host"].ends[0]
    assert host.cached_tier == "host"
    if unified:
        assert host.num_cached_tokens >= len(BEFORE) // 8 * 8
    else:
        assert host.num_cached_tokens >= rows


@pytest.mark.parametrize(
    ("model", "eyes", "unified"), [("qwen2vl", "qwen2.5vl", False), ("qwen3vl", "qwen3vl", True)]
)
async def test_a_load_at_random_that_does_not_fit_gets_what_each_gets_alone(
    folder: Path, model: str, eyes: str, *, unified: bool
) -> None:
    """Sequences are parked, also inside an image, and images are found in all tiers."""
    chance = random.Random(7)
    shown = [ONE, OTHER, picture(3, 200, 90), picture(4, 60, 150)]
    words = [BEFORE, AFTER, "x ", "what now? "]
    requests = []
    for number in range(10):
        parts: list[str | ImagePart] = []
        for _ in range(chance.randint(1, 3)):
            parts += [chance.choice(words), *chance.sample(shown, chance.randint(0, 1))]
        length, urgency = chance.randint(2, 24), chance.randint(0, 2)
        changes = {"max_tokens": length, "priority": urgency}
        requests.append(ask(str(number), *parts, chance.choice(words), **changes))
    settings = config(
        folder, eyes, model, kv_unified=unified, parallel=3, kv_cells=768 if unified else 0
    )
    together = await answers(settings, *requests, together=True)
    plain = config(folder, eyes, model, kv=KvTiers(block_tokens=8), parallel=1)
    for one, other in zip(together, await answers(plain, *requests), strict=True):
        assert one.agrees(other)


@pytest.mark.parametrize("mode", ["ngram", "draft"])
@pytest.mark.parametrize(("model", "eyes"), [("llama", "llava"), *PLACED[-1:]])
async def test_guesses_change_nothing(folder: Path, mode: str, model: str, eyes: str) -> None:
    guessing = {"mode": mode, "draft_path": str(folder / f"{model}.gguf"), "max_tokens": 3}
    plain = await answers(config(folder, eyes, model), ask("a", max_tokens=40))
    settings = config(folder, eyes, model, speculation=guessing)
    found = await answers(settings, ask("a", max_tokens=40))
    assert found[0].facts == plain[0].facts


@pytest.mark.parametrize(("model", "eyes"), [("llama", "llava"), *PLACED])
async def test_after_a_restart_the_disk_tier_brings_the_image_back(
    folder: Path, tmp_path: Path, model: str, eyes: str
) -> None:
    kv = KvTiers(
        block_tokens=8, host_bytes=1 << 20, disk_bytes=1 << 26, disk_path=str(tmp_path / "kv")
    )
    settings = config(folder, eyes, model, kv=kv)
    (first,) = await answers(settings, ask("a"))
    engine = ChildEngine(settings)
    try:
        await engine.start()
        second = await answer_of(engine, ask("b"))
        report = engine.report
    finally:
        await engine.close()
    assert second.agrees(first)
    assert second.ends[0].cached_tier == "disk"
    assert report.images.encoded == 0


async def test_a_client_of_openai_asks_about_an_image(folder: Path) -> None:
    settings = config(folder, "sliced")

    async def look(client: openai.AsyncOpenAI, image: ImagePart) -> Any:
        parts = [
            {"type": "text", "text": "what is it?"},
            {"type": "image_url", "image_url": {"url": data_url(file_of(image))}},
        ]
        return await client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
            temperature=0,
            max_tokens=8,
            extra_body={"ignore_eos": True},
        )

    site_of = running(ChildEngine(settings), settings, renderer=TemplateRenderer)
    async with site_of as site, site.client() as client:
        first, again = await look(client, ONE), await look(client, ONE)
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.usage.prompt_tokens == again.usage.prompt_tokens > tiny_projectors.ROWS
    assert again.usage.prompt_tokens_details.cached_tokens > tiny_projectors.ROWS


async def test_a_client_that_leaves_while_its_image_is_encoded_frees_its_place(
    folder: Path,
) -> None:
    engine = ChildEngine(config(folder, "sliced", parallel=1))
    try:
        await engine.start()
        large = picture(9, 900, 900)
        leaving = engine.submit(ask("a", BEFORE, large, BEFORE, large, BEFORE, large, AFTER))
        await asyncio.sleep(0)
        engine.abort("a")
        ends = [one.finish async for one in leaving]
        assert ends[-1] is FinishReason.ABORT
        assert (await answer_of(engine, ask("b"))).finish is FinishReason.LENGTH
    finally:
        await engine.close()
