"""Where streams queue, a new one begins while those that are ahead of their readers stand still."""

from __future__ import annotations

from typing import Any

import pytest

from support.engine_builders import CoreDriver, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.engine.request import FinishReason

ENDLESS = 10**9
PACE = 5.0
LAYOUTS = pytest.mark.parametrize("layout", ["split", "unified"])


def engine(layout: str = "split", **changes: Any) -> CoreDriver:
    """One slot and steps of 10 ms, so that a stream is soon ahead of its reader."""
    values: dict[str, Any] = {
        "kv": {"host_bytes": 1 << 20, "block_tokens": 8},
        "parallel": 1,
        "reader_pace": PACE,
        "kv_unified": layout == "unified",
    }
    return CoreDriver(runtime_config(**values | changes), FakeBackend(eos_odds=ENDLESS))


def stream(name: str, max_tokens: int = 60, **changes: Any) -> Any:
    return text_request(
        name, f"{name} asks", **{"stream": True, "max_tokens": max_tokens} | changes
    )


def talks(driver: CoreDriver, name: str, tokens: int) -> None:
    """Step until a request has so many tokens."""
    while driver.answers[name].num_tokens < tokens:
        driver.step()


@LAYOUTS
def test_a_new_stream_begins_while_one_that_is_ahead_of_its_reader_rests(layout: str) -> None:
    driver = engine(layout)
    driver.submit(stream("first"))
    talks(driver, "first", 20)
    driver.submit(stream("second", 6))
    before, steps = driver.core.stats.prompt_tokens, driver.steps
    talks(driver, "second", 1)
    assert driver.steps - steps <= 2
    assert not driver.answers["first"].ends
    driver.run()
    assert driver.core.stats.prompt_tokens - before == len("second asks"), "nothing twice"
    for name, tokens in (("first", 60), ("second", 6)):
        reference = engine(layout)
        reference.submit(stream(name, tokens))
        assert driver.answers[name].facts == reference.run()[name].facts


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"stream": False}, {}),
        ({}, {"stream": False}),
        ({}, {"priority": 1}),
        ({"max_tokens": 22}, {}),
    ],
    ids=["whole answers are not read", "whole answers wait", "batch work waits", "it soon ends"],
)
def test_otherwise_who_came_first_goes_on(first: dict[str, Any], second: dict[str, Any]) -> None:
    driver = engine()
    driver.submit(stream("first", **first))
    talks(driver, "first", 20)
    driver.submit(stream("second", **second))
    talks(driver, "second", 1)
    assert driver.answers["first"].ends


@pytest.mark.parametrize(
    "changes", [{"reader_pace": 0}, {"kv": {}}], ids=["switched off", "without a host tier"]
)
def test_nobody_rests_where_that_is_off_or_would_cost_the_prompt(changes: dict[str, Any]) -> None:
    driver = engine(**changes)
    driver.submit(stream("first"), stream("second"))
    talks(driver, "second", 1)
    assert driver.answers["first"].ends


def test_a_stream_that_has_not_got_ahead_keeps_its_slot() -> None:
    driver = engine()
    driver.submit(stream("first"))
    talks(driver, "first", 10)
    driver.clock.now += 9 / PACE
    driver.submit(stream("second"))
    driver.step()
    driver.step()
    assert not driver.answers["second"].num_tokens
    talks(driver, "second", 1)
    assert not driver.answers["first"].ends, "until it is ahead"


def test_twice_as_many_streams_as_slots_have_every_token_in_time() -> None:
    driver = engine(parallel=2, context_tokens=512)
    names = [f"s{number}" for number in range(4)]
    driver.submit(*(stream(name, 150) for name in names))
    began: dict[str, float] = {}
    latest = 0.0
    while driver.core.has_work:
        for output in driver.step():
            if output.num_tokens:
                now = driver.clock.now
                read = (now - began.setdefault(output.id, now)) * PACE
                latest = max(latest, read + 1 - driver.answers[output.id].num_tokens)
    assert max(began.values()) - min(began.values()) < 0.5, "all began at once"
    assert latest <= 0, "and no reader ever waited"
    assert driver.core.prefix.report().parks >= 2


def test_a_free_slot_ends_a_rest() -> None:
    driver = engine()
    driver.submit(stream("first"))
    talks(driver, "first", 40)
    driver.submit(stream("second", 2))
    while not driver.answers["second"].ends:
        driver.step()
    steps = driver.steps
    talks(driver, "first", 42)
    assert driver.steps - steps <= 3, "its reader is busy for seconds, but nobody else is here"


def test_whoever_rests_may_be_cancelled_and_grow_too_old() -> None:
    driver = engine(parallel=2)
    driver.submit(stream("cancelled"), stream("late", timeout_s=3))
    talks(driver, "late", 30)
    driver.submit(stream("other"), stream("another"))
    talks(driver, "other", 1)
    talks(driver, "another", 1)
    assert len(driver.core.running) == 2
    assert driver.core.stats.waiting == 2
    driver.core.abort("cancelled")
    driver.step()
    assert driver.answers["cancelled"].finish is FinishReason.ABORT
    driver.clock.now += 3
    driver.step()
    assert driver.answers["late"].finish is FinishReason.TIMEOUT
    driver.run()
    assert driver.answers["other"].num_tokens == driver.answers["another"].num_tokens == 60
