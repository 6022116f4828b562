"""Images in prompts, on the fake backend, whose answer changes with every row."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import CoreDriver, alone, text_request
from support.pictures import image_request, picture, seeing_config
from support.speculation import guessing_driver
from terrace_runtime.backend import BackendError, SamplerChain, SamplerSettings
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.fake_projector import FakeProjector
from terrace_runtime.contract import KvTiers
from terrace_runtime.engine.image_spans import FIRST_PSEUDO_TOKEN
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.request import (
    FinishReason,
    InvalidRequestError,
    RequestOutput,
    SamplingParams,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HOST = KvTiers(block_tokens=8, host_bytes=1 << 20)
SMALL = KvTiers(block_tokens=8)
RED, BLUE = picture(1), picture(2)


def last(driver: CoreDriver, name: str) -> RequestOutput:
    return driver.answers[name].ends[0]


def test_an_answer_depends_on_the_image_and_on_where_it_stands() -> None:
    config = seeing_config()
    answers = {
        alone(image_request("a", *parts), config).text
        for parts in (("see", RED, "?"), ("see", BLUE, "?"), (RED, "see?"), ("see", RED, BLUE, "?"))
    }
    assert len(answers) == 4


def test_rows_count_as_tokens_of_the_prompt() -> None:
    driver = CoreDriver(seeing_config())
    driver.submit(image_request("a", "see", RED, "?"))
    driver.run()
    # A row of every 16 x 16 pixels, and the fake projector's marks around them.
    assert last(driver, "a").num_prompt_tokens == 3 + 1 + 9 + 1 + 1


def test_a_prompt_whose_rows_do_not_fit_the_context_is_refused() -> None:
    driver = CoreDriver(seeing_config(context_tokens=64))
    with pytest.raises(InvalidRequestError, match="at least 69 tokens, but the context holds 64"):
        driver.submit(image_request("a", "see", picture(3, 128, 128), "?"))


def test_a_prompt_must_not_end_with_an_image() -> None:
    driver = CoreDriver(seeing_config(), FakeBackend(images=Bare()))
    with pytest.raises(InvalidRequestError, match="ends with an image"):
        driver.submit(image_request("a", "see", RED))


class Bare(FakeProjector):
    """No marks behind the rows."""

    def prepare(self, rgb: bytes, width: int, height: int) -> Any:
        made = super().prepare(rgb, width, height)
        return dataclasses.make_dataclass("Made", ["chunks", "close"])(made.chunks[:-1], made.close)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("unified", [True, False])
def test_whoever_else_runs_an_image_gets_the_same_answer(*, unified: bool, is_causal: bool) -> None:
    config = seeing_config(kv_unified=unified, kv=HOST)
    requests = [
        image_request("a", "see", RED, "?"),
        text_request("b", "a longer prompt without any image in it at all"),
        image_request("c", "see", BLUE, "and", picture(3, 96, 32), "?"),
        image_request("d", picture(4, 16, 16), "one row"),
        image_request("e", "see", RED, "and then"),
    ]
    eyes = FakeProjector(is_causal=is_causal)
    driver = CoreDriver(config, FakeBackend(images=eyes))
    driver.submit(*requests)
    driver.run()
    for request in requests:
        lonely = CoreDriver(config, FakeBackend(images=FakeProjector(is_causal=is_causal)))
        lonely.submit(request)
        assert driver.answers[request.id].facts == lonely.run()[request.id].facts


def test_a_stream_goes_on_while_images_are_encoded_and_read() -> None:
    driver = CoreDriver(seeing_config(kv_unified=True))
    driver.submit(text_request("stream", max_tokens=60, sampling=endless()))
    driver.step()
    assert driver.encoder is not None
    driver.encoder.is_held = True
    # 80 rows, of which a step beside a stream reads prefill_tokens = 16.
    driver.submit(image_request("a", "see", picture(1, 128, 160), "?", max_tokens=2))
    for _ in range(10):
        driver.step()
    assert driver.answers["a"].num_tokens == 0
    before = driver.answers["stream"].num_tokens
    assert before >= 10
    driver.encoder.is_held = False
    while driver.answers["a"].num_tokens == 0:
        driver.step()
    assert driver.answers["stream"].num_tokens - before >= 5
    driver.run()


def endless() -> SamplingParams:
    return SamplingParams(temperature=0, ignore_eos=True)


def test_an_image_seen_before_is_neither_encoded_nor_read_again() -> None:
    backend = FakeBackend()
    driver = CoreDriver(seeing_config(kv=HOST), backend)
    driver.submit(image_request("a", "see", RED, "?"))
    driver.run()
    driver.submit(image_request("b", "see", RED, "what is it?"))
    driver.run()
    assert last(driver, "b").num_cached_tokens >= 3 + 1 + 9
    assert backend.projector is not None
    assert backend.projector.encoded == [9]
    assert driver.core.images.report.reused == 1


def test_rows_are_kept_for_an_image_behind_another_beginning() -> None:
    backend = FakeBackend()
    driver = CoreDriver(seeing_config(kv=HOST), backend)
    driver.submit(image_request("a", "see", RED, "?"))
    driver.run()
    driver.submit(image_request("b", "look at", RED, "?"))
    driver.run()
    assert backend.projector is not None
    assert backend.projector.encoded == [9]
    found = driver.core.images.report
    assert (found.encoded, found.kept, found.rows_bytes) == (1, 1, 9 * 8 * 4)


def test_nothing_is_reused_that_ends_inside_an_image() -> None:
    """Block 1 ends within the image; the second request differs right behind it."""
    driver = CoreDriver(seeing_config(kv=HOST), FakeBackend())
    driver.submit(image_request("a", "five", picture(5, 112, 80), "?", max_tokens=1))
    driver.run()
    # The same first tokens, and an image of which only the first row is the same piece's.
    driver.submit(image_request("b", "five", picture(6, 112, 80), "?", max_tokens=1))
    driver.run()
    assert last(driver, "b").num_cached_tokens <= 5
    assert (
        driver.answers["b"].facts
        == alone(
            image_request("b", "five", picture(6, 112, 80), "?", max_tokens=1), seeing_config()
        ).facts
    )


def test_samplers_see_text_alone() -> None:
    class Watching(FakeBackend):
        def sampler(self, settings: SamplerSettings, prompt: Sequence[int]) -> SamplerChain:
            seen.append(list(prompt))
            return super().sampler(settings, prompt)

    seen: list[list[int]] = []
    driver = CoreDriver(seeing_config(), Watching())
    penalties = SamplingParams(temperature=0, repeat_penalty=1.3, dry_multiplier=0.5)
    driver.submit(image_request("a", "see", RED, "?", sampling=penalties))
    driver.run()
    assert seen == [list(b"see<>?")]


def test_a_piece_that_cannot_be_encoded_fails_its_request_alone() -> None:
    backend = FakeBackend(images=FakeProjector(on_encode=fails))
    driver = CoreDriver(seeing_config(), backend)
    driver.submit(image_request("a", "see", RED, "?"), text_request("b"))
    answers = driver.run()
    assert answers["b"].facts == alone(text_request("b"), seeing_config()).facts
    assert answers["a"].finish is FinishReason.ERROR
    assert last(driver, "a").error == "image 1 cannot be encoded: no more memory"
    assert driver.core.images.report.failed == 1


def fails() -> None:
    raise BackendError("no more memory")


def test_an_image_that_failed_is_tried_anew_for_the_next_request() -> None:
    eyes = FakeProjector(on_encode=fails)
    driver = CoreDriver(seeing_config(), FakeBackend(images=eyes))
    driver.submit(image_request("a", "see", RED, "?"))
    driver.run()
    eyes.on_encode = None
    driver.submit(image_request("b", "see", RED, "?"))
    assert driver.run()["b"].finish is not FinishReason.ERROR


def test_a_request_that_left_has_nothing_encoded_for_it() -> None:
    backend = FakeBackend()
    driver = CoreDriver(seeing_config(), backend)
    assert driver.encoder is not None
    driver.encoder.is_held = True
    driver.submit(image_request("a", "see", RED, "?"), image_request("b", "see", BLUE, "?"))
    driver.step()
    driver.core.abort("a")
    driver.core.abort("b")
    driver.step()
    driver.encoder.is_held = False
    driver.submit(text_request("c"))
    driver.run()
    assert driver.answers["a"].finish is FinishReason.ABORT
    assert len(driver.encoder.started) == 1


def test_a_deadline_passes_while_an_image_is_encoded() -> None:
    driver = CoreDriver(seeing_config())
    assert driver.encoder is not None
    driver.encoder.is_held = True
    driver.submit(image_request("a", "see", RED, "?", timeout_s=5))
    driver.step()
    driver.step()
    assert driver.core.is_blocked
    driver.clock.now += 6
    driver.step()
    assert driver.answers["a"].finish is FinishReason.TIMEOUT


@pytest.mark.parametrize("mode", ["ngram", "draft"])
def test_guesses_see_text_alone_and_change_nothing(mode: str) -> None:
    plain = seeing_config(kv_unified=True)
    parts = ("abcabcabcabc", RED, "abcabcabcabcabc")
    expected = alone(image_request("a", *parts, max_tokens=60), plain).facts
    guesses = {"mode": mode, "draft_path": "/x"}
    driver = guessing_driver(seeing_config(kv_unified=True, speculation=guesses))
    driver.submit(image_request("a", *parts, max_tokens=60))
    assert driver.run()["a"].facts == expected
    assert driver.core.speculator is not None
    assert driver.core.speculator.report.drafted_tokens > 0


def test_what_guesses_look_back_over_has_no_pseudo_tokens() -> None:
    driver = CoreDriver(seeing_config())
    driver.submit(image_request("a", "see", RED, "?", max_tokens=8, sampling=endless()))
    for _ in range(5):
        driver.step()
    (sequence,) = driver.core.running
    assert max(sequence.tokens) >= FIRST_PSEUDO_TOKEN
    assert sequence.text == [token for token in sequence.tokens if token < FIRST_PSEUDO_TOKEN]


@pytest.mark.parametrize("reuse", ["blocks", "checkpoints", "none"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_models_of_every_kind_of_reuse_answer_a_second_turn(*, reuse: Any, is_causal: bool) -> None:
    kv = KvTiers(block_tokens=8, host_bytes=1 << 20, checkpoint_tokens=16)
    config = seeing_config(kv=kv, parallel=2)

    def backend() -> FakeBackend:
        return FakeBackend(reuse=reuse, images=FakeProjector(is_causal=is_causal))

    first = image_request("a", "what do you see here, tell me", RED, "in a few words")
    driver = CoreDriver(config, backend())
    driver.submit(first)
    answer = driver.run()["a"].text
    second = image_request("b", *parts_of(first), answer, "and now", BLUE, "?")
    driver.submit(second, text_request("c", "else"))
    driver.run()
    lonely = CoreDriver(config, backend())
    lonely.submit(second)
    assert driver.answers["b"].facts == lonely.run()["b"].facts
    cached = last(driver, "b").num_cached_tokens
    assert cached == 0 if reuse == "none" else cached >= 29 + 11


def parts_of(request: Any) -> tuple[Any, ...]:
    return tuple(getattr(part, "text", part) for part in request.prompt)


def test_a_parked_image_goes_on_where_it_was() -> None:
    config = seeing_config(kv=HOST, kv_unified=True, parallel=3)
    requests = [
        image_request(name, "see", picture(seed, 64, 64), "and tell a long story", max_tokens=50)
        for seed, name in enumerate("abc")
    ]
    requests = [dataclasses.replace(one, sampling=endless()) for one in requests]
    driver = CoreDriver(config, FakeBackend(kv_cells=100))
    driver.submit(*requests)
    driver.run()
    assert driver.core.report(0).cache.parks > 0
    for request in requests:
        assert driver.answers[request.id].facts == alone(request, seeing_config()).facts


def test_a_piece_too_large_for_the_cells_ends_its_request() -> None:
    eyes = FakeProjector(is_causal=False)
    driver = CoreDriver(seeing_config(parallel=1), FakeBackend(images=eyes, kv_cells=20))
    driver.submit(image_request("a", "see", picture(1, 64, 96), "?"))
    assert driver.run()["a"].finish is FinishReason.ERROR
    assert "the KV cache is full" in last(driver, "a").error


def test_after_a_restart_the_disk_tier_brings_an_image_back_unencoded(tmp_path: Path) -> None:
    kv = KvTiers(
        block_tokens=8, host_bytes=1 << 16, disk_bytes=1 << 22, disk_path=str(tmp_path / "kv")
    )
    config = seeing_config(kv=kv)
    request = image_request("a", "see", picture(7, 64, 64), "and tell me what it is")
    first = CoreDriver(config)
    first.submit(request)
    expected = first.run()["a"].facts
    while first.core.chore():
        pass
    first.tiers.close(20)
    backend = FakeBackend()
    second = CoreDriver(config, backend)
    second.submit(dataclasses.replace(request, id="b"))
    second.run(max_steps=500_000)
    second.tiers.close(20)
    assert second.answers["b"].facts == expected
    assert last(second, "b").num_cached_tokens >= 20
    assert last(second, "b").cached_tier == "disk"
    assert backend.projector is not None
    assert backend.projector.encoded == []


def test_equal_images_of_different_projectors_share_nothing() -> None:
    backend = FakeBackend()
    backend.load(seeing_config())
    driver = CoreDriver(seeing_config())
    request = image_request("a", "see", RED, "?")
    tokens = {
        tuple(make_sequence(request, backend, driver.core.table, config).tokens)
        for config in (seeing_config(), seeing_config(projector_digest="2" * 64))
    }
    assert len(tokens) == 2
