"""Requests of several adapters share one engine, and each gets what it gets alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine_builders import CoreDriver, alone, random_request, runtime_config, text_request
from terrace_runtime.contract import Adapter, KvTiers
from terrace_runtime.engine.request import PromptPart

ADAPTERS = tuple(
    Adapter(name=name, path=f"/models/{name}", digest="e" * 64) for name in ("poet", "clerk")
)
NAMES = ("", "poet", "clerk")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([0, 1 << 16]))
def test_interleaved_requests_of_several_adapters_get_what_each_gets_alone(
    seed: int,
    kv_unified: bool,  # noqa: FBT001 - hypothesis draws it
    host_bytes: int,
) -> None:
    chance = random.Random(seed)
    config = runtime_config(
        adapters=ADAPTERS,
        kv_unified=kv_unified,
        kv=KvTiers(block_tokens=8, host_bytes=host_bytes, isolation="shared"),
    )
    shared = "the same beginning of every prompt, longer than a few blocks: "
    requests = []
    for number in range(chance.randint(2, 10)):
        one = random_request(f"r{number}", chance, adapter=chance.choice(NAMES))
        if one.prompt and chance.random() < 0.7:
            (first, *_) = one.prompt
            assert isinstance(first, PromptPart)
            one = text_request(
                one.id,
                shared + first.text,
                sampling=one.sampling,
                max_tokens=one.max_tokens,
                adapter=one.adapter,
            )
        requests.append(one)
    driver = CoreDriver(config)
    for request in requests:
        driver.submit(request)
        for _ in range(chance.randint(0, 6)):
            driver.step()
    answers = driver.run()
    for request in requests:
        assert answers[request.id].facts == alone(request, config).facts, request.id


def test_an_adapter_changes_the_answer_and_the_fake_engine_shows_it() -> None:
    config = runtime_config(adapters=ADAPTERS)
    texts = {alone(text_request("r", adapter=name), config).text for name in NAMES}
    assert len(texts) == 3


@pytest.mark.parametrize("crowd", [2, 4])
def test_a_crowd_of_one_adapter_does_not_starve_a_single_request_of_another(crowd: int) -> None:
    driver = CoreDriver(runtime_config(adapters=ADAPTERS, parallel=crowd + 1))
    for number in range(crowd):
        driver.submit(text_request(f"c{number}", adapter="clerk", max_tokens=200))
    driver.submit(text_request("poem", adapter="poet", max_tokens=4))
    while not driver.answers["poem"].ends:
        driver.step()
        # A step takes 0.01 s on the driver's clock, a turn at least 0.1 s.
        assert driver.steps < 40
    driver.run()
