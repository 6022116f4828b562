"""Texts leave a few steps together while nothing but decoding goes on, and none is lost or late."""

from __future__ import annotations

from typing import Any

import pytest

from support.engine_builders import CoreDriver, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.engine.request import FinishReason, SamplingParams

ENDLESS = 10**9
STEP_S = 0.01
"""Of the driver's clock."""


def engine(interval_s: float, **changes: Any) -> CoreDriver:
    values: dict[str, Any] = {"kv": {"host_bytes": 1 << 20, "block_tokens": 8}, "parallel": 2}
    config = runtime_config(**values | changes, stream_interval_s=interval_s)
    return CoreDriver(config, FakeBackend(eos_odds=ENDLESS))


def pieces(driver: CoreDriver, name: str) -> list[tuple[float, int]]:
    """(seconds, tokens) of each output of one request, until all have ended."""
    found = []
    while driver.core.has_work:
        mine = [output.num_tokens for output in driver.step() if output.id == name]
        found += [(driver.clock.now, tokens) for tokens in mine]
    return found


def test_texts_leave_together_but_the_first_and_the_last_one() -> None:
    driver = engine(3.5 * STEP_S)
    driver.submit(text_request("r", "hello", max_tokens=20))
    found = pieces(driver, "r")
    assert [tokens for _, tokens in found] == [1, 4, 4, 4, 4, 3]
    assert driver.answers["r"].num_tokens == 20


@pytest.mark.parametrize("interval_s", [0, STEP_S / 2])
def test_a_step_that_takes_longer_than_the_interval_tells_at_once(interval_s: float) -> None:
    driver = engine(interval_s)
    driver.submit(text_request("r", "hello", max_tokens=9))
    assert [tokens for _, tokens in pieces(driver, "r")] == [1] * 9


def test_all_answers_leave_in_the_same_step_for_they_wake_the_server_once() -> None:
    driver = engine(3.5 * STEP_S)
    driver.submit(text_request("a", max_tokens=40), text_request("b", "longer", max_tokens=40))
    counts = []
    while driver.core.has_work:
        counts.append(len(driver.step()))
    assert set(counts[2:-1]) == {0, 2}


def test_nothing_is_held_back_before_a_step_that_takes_longer() -> None:
    """Another one's prompt is computed in between: whoever has text gets it first."""
    driver = engine(1.0)
    driver.submit(text_request("runs", max_tokens=60))
    while driver.answers["runs"].num_tokens < 1:
        driver.step()
    for _ in range(5):
        driver.step()
    assert driver.answers["runs"].num_tokens == 1
    driver.submit(text_request("comes", "x" * 100, max_tokens=1))
    driver.step()
    assert driver.answers["runs"].num_tokens >= 6


@pytest.mark.parametrize("end", ["abort", "timeout", "parked", "stop"])
def test_whatever_happens_next_no_text_is_lost(end: str) -> None:
    request = text_request("r", max_tokens=60, timeout_s=100, priority=1)
    reference = engine(0)
    reference.submit(request)
    whole = reference.run()["r"].text
    driver = engine(1.0, parallel=1)
    driver.submit(request)
    for _ in range(12):
        driver.step()
    held = driver.answers["r"].num_tokens
    assert held == 1
    if end == "abort":
        driver.core.abort("r")
    elif end == "timeout":
        driver.clock.now += 100
    elif end == "parked":
        driver.submit(text_request("urgent", "now", max_tokens=2))
        driver.step()
        assert driver.answers["r"].num_tokens >= 9, "it has no slot, but its reader its text"
    driver.run()
    answer = driver.answers["r"]
    assert whole.startswith(answer.text)
    assert len(answer.ends) == 1
    if end in {"parked", "stop"}:
        assert (answer.text, answer.finish) == (whole, FinishReason.LENGTH)
    else:
        assert answer.num_tokens >= 9


def test_every_token_keeps_its_probability() -> None:
    sampling = SamplingParams(temperature=0, logprobs=1)
    driver = engine(1.0)
    driver.submit(text_request("r", max_tokens=12, sampling=sampling))
    logprobs = []
    while driver.core.has_work:
        logprobs += [entry for output in driver.step() for entry in output.logprobs]
    assert len(logprobs) == 12
