"""Models whose cells cannot be cut keep states where prompts part: nobody computes twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import CoreDriver, alone, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.contract import KvTiers
from terrace_runtime.engine.stops import LEAST_GAIN

if TYPE_CHECKING:
    from terrace_runtime.engine.request import Request

BLOCK = 8
PREFIX = "the llama climbs a terrace and tells of pods " * 4
"""180 tokens of the fake backend."""
SHARED = len(PREFIX) // BLOCK * BLOCK
OWN = " and asks a thing of its own"


def engine(**changes: Any) -> CoreDriver:
    kv = {"block_tokens": BLOCK, "host_bytes": 1 << 20, "checkpoint_tokens": 4096}
    kv |= changes.pop("kv", {})
    values = {"parallel": 4, "context_tokens": 512, "batch_tokens": 64, **changes}
    return CoreDriver(runtime_config(kv=KvTiers(**kv), **values), FakeBackend(reuse="checkpoints"))


def asks(*names: str, prefix: str = PREFIX, **changes: Any) -> list[Request]:
    return [text_request(name, f"{prefix}{name}{OWN}", max_tokens=8, **changes) for name in names]


def cached(driver: CoreDriver, *names: str) -> list[int]:
    return [driver.answers[name].ends[0].num_cached_tokens for name in names]


def test_of_prompts_that_come_together_the_first_alone_computes_what_they_share() -> None:
    driver = engine()
    requests = asks("a", "b", "c", "d")
    driver.submit(*requests)
    driver.run()
    assert cached(driver, "a", "b", "c", "d") == [0, SHARED, SHARED, SHARED]
    whole = len(f"{PREFIX}a{OWN}")
    assert driver.core.stats.prompt_tokens <= whole + 3 * (whole - SHARED)
    for request in requests:
        assert driver.answers[request.id].facts == alone(request, driver.config).facts


def test_one_that_comes_while_another_computes_has_it_keep_a_state_on_its_way() -> None:
    driver = engine(batch_tokens=32)
    first, second = asks("a", "b")
    driver.submit(first)
    driver.step()
    driver.submit(second)
    driver.run()
    assert cached(driver, "a", "b") == [0, SHARED]


def test_a_state_is_kept_where_a_prompt_parts_from_an_earlier_one() -> None:
    driver = engine(parallel=1)
    for request in asks("a", "b", "c", "d"):
        driver.submit(request)
        driver.run()
    # The second computes all of it, but stops where it parts from the first.
    assert cached(driver, "a", "b", "c", "d") == [0, 0, SHARED, SHARED]


def test_each_branch_of_three_has_its_state() -> None:
    driver = engine(parallel=1)
    deeper = PREFIX + "who live where the air is thin and the maize is purple, and who therefore "
    for request in [*asks("a"), *asks("b", "c", prefix=deeper), *asks("d", prefix=deeper)]:
        driver.submit(request)
        driver.run()
    assert cached(driver, "a", "b", "c", "d") == [0, 0, SHARED, len(deeper) // BLOCK * BLOCK]


@pytest.mark.parametrize("shared", [LEAST_GAIN - 1, LEAST_GAIN])
def test_a_short_beginning_in_common_is_no_reason_to_wait_or_to_stop(shared: int) -> None:
    driver = engine()
    driver.submit(*asks("a", "b", prefix="x" * shared))
    driver.run()
    assert cached(driver, "a", "b") == [0, shared if shared == LEAST_GAIN else 0]


def test_who_waits_goes_on_when_the_other_is_cancelled() -> None:
    driver = engine(batch_tokens=32)
    first, second, third = asks("a", "b", "c")
    driver.submit(first, second, third)
    driver.step()
    driver.core.abort("a")
    driver.run()
    # The cells that the first left after one step are whole blocks.
    assert cached(driver, "b", "c") == [32, SHARED]
    for request in (second, third):
        assert driver.answers[request.id].facts == alone(request, driver.config).facts


@pytest.mark.parametrize(
    "kv",
    [
        {"checkpoint_count": 0},
        {"checkpoint_count": 1},
        {"host_bytes": 0},
        {"host_bytes": 64, "checkpoint_tokens": 16},
    ],
)
def test_without_room_for_states_everybody_computes_and_nobody_waits_in_turn(
    kv: dict[str, int],
) -> None:
    driver = engine(kv=kv)
    # Whether states fit is known once there was one.
    driver.submit(*asks("warm", prefix="y" * 90))
    driver.run()
    requests = asks("a", "b", "c", "d")
    driver.submit(*requests)
    driver.step()
    assert driver.core.stats.running == 4, "all have begun"
    driver.run()
    assert cached(driver, "a", "b", "c", "d") == [0, 0, 0, 0]
    for request in requests:
        assert driver.answers[request.id].facts == alone(request, driver.config).facts


def test_tenants_neither_wait_for_one_another_nor_learn_where_they_part() -> None:
    driver = engine()
    driver.submit(*asks("a", tenant="one"), *asks("b", tenant="two"))
    driver.run()
    driver.submit(*asks("c", tenant="two"))
    driver.run()
    assert cached(driver, "a", "b") == [0, 0]
