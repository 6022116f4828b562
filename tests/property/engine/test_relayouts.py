"""Whoever comes when: with layouts that change, every answer is what it is alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine_builders import CoreDriver, alone, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend

STORY = "the llama climbs a terrace and tells of pods " * 12
WAVES = st.lists(
    st.tuples(
        st.booleans(),  # with the common story
        st.integers(1, 9),  # requests
        st.integers(0, 12),  # steps before the next wave
        st.integers(0, 120),  # seconds before it
    ),
    min_size=1,
    max_size=5,
)


@given(
    waves=WAVES,
    host_blocks=st.sampled_from([40, 400, 4000]),
    batch_tokens=st.sampled_from([64, 512]),
    abort=st.integers(0, 40),
)
@settings(max_examples=25)
def test_answers_do_not_depend_on_layouts(
    waves: list[tuple[bool, int, int, int]], host_blocks: int, batch_tokens: int, abort: int
) -> None:
    config = runtime_config(
        kv_auto=True,
        kv={"host_bytes": host_blocks * 64, "block_tokens": 8},
        parallel=6,
        context_tokens=1024,
        batch_tokens=batch_tokens,
    )
    driver = CoreDriver(config, FakeBackend())
    requests = {}
    for wave, (is_shared, count, steps, seconds) in enumerate(waves):
        for number in range(count):
            name = f"w{wave}n{number}"
            text = f"{STORY}{name}" if is_shared else f"{name} {number} tells " * 20
            requests[name] = text_request(name, text, max_tokens=12)
            driver.submit(requests[name])
        for _ in range(steps):
            if driver.core.has_work:
                driver.step()
        driver.clock.now += seconds
    aborted = list(requests)[abort % len(requests)]
    driver.core.abort(aborted)
    answers = driver.run()
    for name, request in requests.items():
        if name != aborted:
            assert answers[name].facts == alone(request, config).facts
