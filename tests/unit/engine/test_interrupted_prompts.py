"""A prompt that is set aside half computed: what its request is told does not show it."""

from __future__ import annotations

from typing import Any

import pytest

from support.engine_builders import CoreDriver, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend

ENDLESS = 10**9
KNOWN = "the llama climbs a terrace and tells of pods " * 2
"""90 tokens of the fake backend: 11 blocks of 8."""
PROMPT = KNOWN + "where potatoes grow in rows above the river " * 4
BLOCK_BYTES = 64
LAYOUTS = pytest.mark.parametrize("layout", ["split", "unified"])


def engine(layout: str = "split", **kv: Any) -> CoreDriver:
    """One slot and steps of 32 tokens."""
    settings = runtime_config(
        kv={"host_bytes": 1 << 20, "block_tokens": 8} | kv,
        kv_unified=layout == "unified",
        context_tokens=512,
        parallel=1,
        batch_tokens=32,
    )
    return CoreDriver(settings, FakeBackend(eos_odds=ENDLESS))


def interrupt(driver: CoreDriver, **changes: Any) -> None:
    """A patient request has computed a part of its prompt when an urgent one wants the slot."""
    driver.submit(text_request("patient", PROMPT, priority=1, max_tokens=3, **changes))
    for _ in range(3):
        driver.step()
    driver.submit(text_request("urgent", "now", max_tokens=2))
    driver.run()
    assert driver.core.report(0).cache.parks == 1


@LAYOUTS
def test_what_a_request_computed_itself_is_not_told_as_cached(layout: str) -> None:
    driver = engine(layout)
    interrupt(driver)
    end = driver.answers["patient"].ends[0]
    assert (end.num_cached_tokens, end.cached_tier) == (0, "")


@LAYOUTS
def test_what_was_found_at_first_is_told(layout: str) -> None:
    driver = engine(layout)
    driver.submit(text_request("before", KNOWN + "?", max_tokens=1))
    driver.run()
    interrupt(driver)
    end = driver.answers["patient"].ends[0]
    assert (end.num_cached_tokens, end.cached_tier) == (len(KNOWN), "device")


def test_a_request_waited_until_it_began_and_not_until_it_went_on() -> None:
    driver = engine()
    interrupt(driver)
    assert driver.answers["patient"].ends[0].queued_s < 0.02


def test_all_of_a_prompt_is_pinned() -> None:
    driver = engine(host_bytes=80 * BLOCK_BYTES, pinned_bytes=40 * BLOCK_BYTES)
    interrupt(driver, pin=True)
    for number in range(8):
        driver.submit(text_request(f"flood{number}", chr(97 + number) * 200, max_tokens=1))
        driver.run()
    driver.submit(text_request("again", PROMPT + "!", max_tokens=1))
    driver.run()
    assert driver.answers["again"].ends[0].num_cached_tokens // 8 == len(PROMPT) // 8
