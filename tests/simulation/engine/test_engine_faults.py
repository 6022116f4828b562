"""An abort at every step and a fault at every decode: everybody ends once, nothing hangs."""

from __future__ import annotations

import asyncio
import random

import pytest

from support.engine_builders import (
    CoreDriver,
    alone,
    answer_of,
    random_request,
    runtime_config,
)
from terrace_runtime.backend import DECODE_NO_ROOM
from terrace_runtime.backend.fake import FakeBackend, Fault
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import FinishReason, Request

CONFIG = runtime_config(parallel=3)
SEEDS = range(3)
WAIT_S = 100.0
NORMAL = {FinishReason.STOP, FinishReason.LENGTH}


def load(seed: int) -> list[Request]:
    chance = random.Random(seed)
    return [random_request(f"r{number}", chance) for number in range(8)]


def is_cut(text: str, whole: str) -> bool:
    """``text`` is the beginning of ``whole``; a character cut in half shows as U+FFFD."""
    return whole.startswith(text.removesuffix("\ufffd"))


def run(requests: list[Request], backend: FakeBackend | None = None) -> CoreDriver:
    driver = CoreDriver(CONFIG, backend)
    driver.submit(*requests)
    driver.run()
    return driver


@pytest.mark.parametrize("seed", SEEDS)
def test_an_abort_of_anybody_at_any_step_ends_him_alone(seed: int) -> None:
    requests = load(seed)
    expected = {request.id: alone(request, CONFIG).facts for request in requests}
    chance = random.Random(seed)
    for step in range(run(requests).steps):
        victim = chance.choice(requests).id
        driver = CoreDriver(CONFIG)
        driver.submit(*requests)
        for _ in range(step):
            driver.step()
        was_done = bool(driver.answers[victim].ends)
        driver.core.abort(victim)
        answers = driver.run()
        for request in requests:
            if request.id != victim or was_done:
                assert answers[request.id].facts == expected[request.id]
        if not was_done:
            assert answers[victim].finish is FinishReason.ABORT
            assert is_cut(answers[victim].text, expected[victim][0])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_abort_of_everybody_at_any_step_leaves_nothing_behind(seed: int) -> None:
    requests = load(seed)
    for step in range(run(requests).steps):
        driver = CoreDriver(CONFIG)
        driver.submit(*requests)
        for _ in range(step):
            driver.step()
        driver.core.abort_all()
        driver.step()
        assert not driver.core.has_work
        assert {answer.finish for answer in driver.answers.values()} <= {
            *NORMAL,
            FinishReason.ABORT,
        }
        driver.core.prefix.residents.drop_all()
        assert [driver.backend.seq_pos_max(slot) for slot in range(3)] == [-1] * 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_full_cache_at_any_decode_changes_no_answer(seed: int) -> None:
    requests = load(seed)
    expected = {request.id: alone(request, CONFIG).facts for request in requests}
    for decode in range(run(requests).backend.decodes):
        faults = {decode: Fault(code=DECODE_NO_ROOM), decode + 1: Fault(code=DECODE_NO_ROOM)}
        driver = run(requests, FakeBackend(faults=faults))
        for name, answer in driver.answers.items():
            if answer.facts != expected[name]:
                # Alone and with one token to compute, no room twice means the end of the cache.
                assert answer.finish in (FinishReason.LENGTH, FinishReason.ERROR)
                assert is_cut(answer.text, expected[name][0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "fault", [Fault(code=-2), Fault(error="device lost")], ids=["code", "error"]
)
async def test_a_broken_backend_at_any_decode_ends_everybody_once(seed: int, fault: Fault) -> None:
    requests = load(seed)
    for decode in range(0, run(requests).backend.decodes, 3):
        engine = InProcessEngine(CONFIG, FakeBackend(faults={decode: fault}))
        async with asyncio.timeout(WAIT_S):
            await engine.start()
            answers = await asyncio.gather(*(answer_of(engine, one) for one in requests))
            await engine.close()
        assert {answer.finish for answer in answers} <= {*NORMAL, FinishReason.ERROR}
        for answer in answers:
            assert (answer.finish is FinishReason.ERROR) == bool(answer.ends[0].error)
        assert bool(engine.error) == any(one.finish is FinishReason.ERROR for one in answers)


@pytest.mark.parametrize("seed", SEEDS)
async def test_readers_who_come_and_go_at_random_never_disturb_the_others(seed: int) -> None:
    chance = random.Random(seed)
    engine = InProcessEngine(runtime_config(parallel=3, max_waiting=100), FakeBackend())
    await engine.start()

    async def read(request: Request, patience: int) -> None:
        stream = engine.submit(request)
        text = ""
        async for output in stream:
            text += output.text
            patience -= 1
            if not patience:
                await stream.aclose()
                assert alone(request, CONFIG).text.startswith(text)
                return
        assert text == alone(request, CONFIG).text

    requests = [random_request(f"r{number}", chance) for number in range(40)]
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(read(one, chance.choice([1, 2, 5, 999])) for one in requests))
        await engine.drain(WAIT_S)
    assert engine.error == ""
    assert (engine.stats.running, engine.stats.waiting) == (0, 0)
    await engine.close()
