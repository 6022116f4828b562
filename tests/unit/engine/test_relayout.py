"""Layouts change while requests are open, and no answer shows it (the fake backend)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from support.engine_builders import CoreDriver, runtime_config, text_request
from support.speculation import guessing_driver
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.contract import Speculation
from terrace_runtime.engine.request import FinishReason, Request

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig

ENDLESS = 10**9
SHARED = "the llama climbs a terrace and tells of pods " * 16
"""720 tokens of the fake backend."""


def config(**changes: Any) -> RuntimeConfig:
    kv = {"host_bytes": 1 << 20, "block_tokens": 8, **changes.pop("kv", {})}
    settings = {"kv_auto": True, "kv": kv, "parallel": 8, "context_tokens": 1024, **changes}
    return runtime_config(**settings)


def driver(settings: RuntimeConfig, **faults: Any) -> CoreDriver:
    return CoreDriver(settings, FakeBackend(eos_odds=ENDLESS, **faults))


def alike(count: int, name: str = "alike") -> list[Request]:
    return [text_request(f"{name}{i}", f"{SHARED} {name} {i}", max_tokens=6) for i in range(count)]


def different(count: int, name: str = "different") -> list[Request]:
    return [text_request(f"{name}{i}", f"{i} {name} " * 70, max_tokens=6) for i in range(count)]


def expected(requests: list[Request], settings: RuntimeConfig) -> dict[str, Any]:
    plain = driver(settings.model_copy(update={"kv_auto": False}))
    plain.submit(*requests)
    return {name: answer.facts for name, answer in plain.run().items()}


def facts(engine: CoreDriver) -> dict[str, Any]:
    return {name: answer.facts for name, answer in engine.answers.items()}


def layout(engine: CoreDriver) -> tuple[str, int]:
    cache = engine.core.report(engine.clock.now).cache
    return cache.layout, cache.layout_changes


def test_a_shared_prompt_brings_unified_cells_while_it_is_computed() -> None:
    settings = config(batch_tokens=256)
    engine = driver(settings)
    first, *others = alike(8)
    engine.submit(first)
    engine.step()
    engine.submit(*others)
    assert layout(engine) == ("split", 0)
    engine.run()
    assert layout(engine) == ("unified", 1)
    assert facts(engine) == expected([first, *others], settings)
    # What the first one had computed was not computed again: 720 tokens, and eight ends.
    assert engine.core.stats.prompt_tokens < 720 + 8 * 40


def test_different_prompts_bring_split_cells_back() -> None:
    settings = config()
    engine = driver(settings)
    engine.submit(*alike(8))
    engine.run()
    engine.clock.now += 60
    engine.submit(*different(8))
    engine.run()
    assert layout(engine) == ("split", 2)
    assert facts(engine) == expected([*alike(8), *different(8)], settings)


def test_those_that_run_go_on_in_the_new_cells() -> None:
    settings = config()
    engine = driver(settings)
    long = text_request("long", "a story that is told meanwhile", max_tokens=60)
    engine.submit(long)
    for _ in range(20):
        engine.step()
    engine.submit(*alike(7))
    engine.run()
    assert layout(engine) == ("unified", 1)
    assert facts(engine) == expected([long, *alike(7)], settings)
    assert engine.core.report(0).cache.parks == 0, "nobody was set aside for want of room"


def test_a_change_rests_before_the_next_one() -> None:
    """On the test's clock a change takes no time, so the rest is one of changes that take some."""

    class Slow(FakeBackend):
        def reopen(self, *, unified: bool) -> None:
            super().reopen(unified=unified)
            engine.clock.now += 1.0

    settings = config()
    engine = CoreDriver(settings, Slow(eos_odds=ENDLESS))
    engine.submit(*alike(8))
    engine.run()
    engine.submit(*different(8))
    engine.run()
    assert layout(engine) == ("unified", 1), "50 times as long as the change took"
    engine.clock.now += 51
    engine.submit(*different(8, "later"))
    engine.run()
    assert layout(engine) == ("split", 2)


def test_without_memory_for_the_other_cells_the_old_ones_come_back() -> None:
    settings = config()
    engine = driver(settings, reopen_errors=["no memory"])
    engine.submit(*alike(8))
    engine.run()
    assert layout(engine) == ("split", 0)
    assert facts(engine) == expected(alike(8), settings)
    engine.submit(*alike(8, "again"))
    engine.run()
    assert layout(engine) == ("split", 0), "it is not tried again"


def test_without_any_cells_the_engine_is_broken() -> None:
    engine = driver(config(), reopen_errors=["no memory", "none at all"])
    engine.submit(*alike(8))
    with pytest.raises(BackendError, match="none at all"):
        engine.run()


def test_cells_that_the_host_tier_could_not_keep_stay_where_they_are() -> None:
    # 1,000 tokens run; the host tier holds 1,024.
    settings = config(kv={"host_bytes": 8 * 1024})
    engine = driver(settings)
    long = text_request("long", "x" * 900, max_tokens=100)
    engine.submit(long)
    for _ in range(50):
        engine.step()
    engine.submit(*alike(7))
    engine.step()
    assert layout(engine) == ("split", 0)
    engine.run()
    assert facts(engine) == expected([long, *alike(7)], settings)


@pytest.mark.parametrize(
    "unable", [{"kv_auto": False}, {"kv": {"host_bytes": 0}}, {"device_sampling": "on"}]
)
def test_where_cells_cannot_move_the_layout_stays(unable: dict[str, Any]) -> None:
    engine = driver(config(**unable))
    engine.submit(*alike(8))
    engine.run()
    assert layout(engine) == ("split", 0)


def test_a_model_with_checkpoints_keeps_its_layout() -> None:
    engine = driver(config(), reuse="checkpoints")
    engine.submit(*alike(8))
    engine.run()
    assert layout(engine) == ("split", 0)


def test_whoever_is_cancelled_or_late_ends_across_a_change() -> None:
    engine = driver(config(batch_tokens=256))
    first, second, *others = alike(8)
    engine.submit(first)
    engine.step()
    engine.submit(second, *others)
    engine.core.abort(first.id)
    engine.core.abort(others[0].id)
    engine.run()
    ends = {name: answer.finish for name, answer in engine.answers.items()}
    assert [name for name, why in ends.items() if why is FinishReason.ABORT] == [
        first.id,
        others[0].id,
    ]
    assert sum(why is FinishReason.LENGTH for why in ends.values()) == 6


@pytest.mark.parametrize("mode", ["ngram", "draft"])
def test_guesses_survive_a_change(mode: Literal["ngram", "draft"]) -> None:
    settings = config(speculation=Speculation(mode=mode, max_tokens=4))
    engine = guessing_driver(settings, FakeBackend(eos_odds=ENDLESS))
    engine.submit(*alike(8))
    engine.run()
    engine.clock.now += 60
    engine.submit(*different(8))
    engine.run()
    assert layout(engine) == ("split", 2)
    assert engine.core.report(0).speculation.drafted_tokens
    assert facts(engine) == expected([*alike(8), *different(8)], settings)
