"""A disk that answers nothing any more, as a network's volume may, holds nobody up for long."""

from __future__ import annotations

import pytest

from support.engine_builders import CoreDriver, runtime_config, text_request
from support.kv_blocks import FakeDisk
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.kv.reading import PATIENCE_S

ENDLESS = 10**9
PROMPT = "the llama climbs a terrace and tells of pods " * 4
LAYOUTS = pytest.mark.parametrize("layout", ["split", "unified"])


def engine(layout: str, disk: FakeDisk | None = None, window: int = 1024) -> CoreDriver:
    settings = runtime_config(
        kv={"host_bytes": 1 << 16, "block_tokens": 8, "prefetch_bytes": window},
        kv_unified=layout == "unified",
        context_tokens=512,
        parallel=3,
    )
    return CoreDriver(settings, FakeBackend(eos_odds=ENDLESS), disk)


def restarted(layout: str, window: int = 1024) -> tuple[CoreDriver, FakeDisk]:
    """An engine that has the cells of ``PROMPT`` on a disk which answers when it is told."""
    disk = FakeDisk(is_immediate=True)
    before = engine(layout, disk)
    before.submit(text_request("first", PROMPT, max_tokens=2))
    before.run()
    while before.core.chore():
        pass
    assert len(disk.blocks) >= len(PROMPT) // 8
    slow = FakeDisk(blocks=disk.blocks)
    return engine(layout, slow, window), slow


@LAYOUTS
@pytest.mark.parametrize("num_read", [0, 5])
def test_whoever_waits_for_it_computes_the_rest_and_others_begin(
    layout: str, num_read: int
) -> None:
    driver, disk = restarted(layout)
    again = text_request("again", PROMPT + "and?", max_tokens=4)
    other = text_request("other", "something else", max_tokens=4)
    driver.submit(again, other)
    for _ in range(3):
        driver.step()
    disk.run(num_read)
    for _ in range(30):
        driver.step()
    assert not driver.answers["again"].ends, "it waits"
    driver.clock.now += PATIENCE_S
    driver.run(max_steps=100)
    for request in (again, other):
        reference = engine(layout)
        reference.submit(request)
        assert driver.answers[request.id].facts == reference.run()[request.id].facts
    found = driver.answers["again"].ends[0].num_cached_tokens
    assert found <= num_read * 8
    assert found == num_read * 8 or layout == "unified"


@LAYOUTS
def test_nobody_waits_for_it_until_it_answers(layout: str) -> None:
    driver, disk = restarted(layout)
    driver.submit(text_request("again", PROMPT + "and?", max_tokens=4))
    driver.step()
    driver.clock.now += PATIENCE_S
    driver.run(max_steps=100)
    driver.core.prefix.residents.drop_all()
    driver.submit(text_request("other", PROMPT[:64] + "elsewhere", max_tokens=4))
    for _ in range(20):
        driver.step()
    assert driver.answers["other"].ends
    disk.run()
    disk.is_immediate = True
    driver.step()
    assert driver.tiers.store is not None
    assert driver.tiers.store.match([*disk.blocks]).num_blocks == len(disk.blocks)
