"""States where prompts part change nothing but what is computed, whoever comes and leaves when."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine_builders import CoreDriver, alone, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.contract import KvTiers
from terrace_runtime.engine.request import FinishReason


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 2, 32]),
    st.sampled_from([16, 64, 4096]),
    st.sampled_from([32, 64, 512]),
)
def test_answers_are_those_of_an_engine_of_ones_own(
    seed: int, count: int, interval: int, batch: int
) -> None:
    chance = random.Random(seed)
    kv = KvTiers(
        block_tokens=8,
        host_bytes=chance.choice([4096, 1 << 20]),
        checkpoint_tokens=interval,
        checkpoint_count=count,
    )
    config = runtime_config(kv=kv, parallel=3, context_tokens=512, batch_tokens=batch)
    driver = CoreDriver(config, FakeBackend(reuse="checkpoints"))
    tree = [""]
    requests = {}
    for number in range(chance.randint(2, 12)):
        text = chance.choice(tree) + "".join(chance.choices("ab", k=chance.randint(1, 120)))
        text = text[:400]
        tree.append(text)
        request = text_request(
            f"r{number}",
            text,
            tenant=chance.choice(["a", "b"]),
            max_tokens=chance.choice([1, 9]),
            priority=chance.choice([0, 1]),
        )
        requests[request.id] = request
        driver.submit(request)
        for _ in range(chance.choice([0, 0, 1, 3, 12])):
            driver.step()
        if chance.random() < 0.15:
            driver.core.abort(chance.choice(list(requests)))
    answers = driver.run()
    for name, request in requests.items():
        found = answers[name]
        if found.finish is not FinishReason.ABORT:
            assert found.facts == alone(request, config).facts
            assert found.ends[0].num_cached_tokens < found.ends[0].num_prompt_tokens
