"""EngineClient with the engine's threads in this process, on the fake backend."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import answer_of, runtime_config, text_request
from terrace_runtime.backend.fake import FakeBackend, Fault
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import (
    EngineError,
    FinishReason,
    InvalidRequestError,
    PromptPart,
    QueueFullError,
    Request,
    SamplingParams,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from terrace_runtime.engine.stream import OutputStream

ENDLESS = 10**9
WAIT_S = 60.0
HUGE = {"context_tokens": 1_000_000, "batch_tokens": 512}
"""So long an answer that nothing but an abort ends it while a test runs."""


class Gate:
    """Holds decodes until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(WAIT_S)

    async def until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, WAIT_S)


Opener = "Callable[..., InProcessEngine]"


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts engines on fake backends and closes them after the test."""
    engines: list[InProcessEngine] = []

    async def open_engine(backend: FakeBackend | None = None, **changes: Any) -> InProcessEngine:
        engine = InProcessEngine(runtime_config(**changes), backend or FakeBackend())
        engines.append(engine)
        await engine.start()
        return engine

    yield open_engine
    for engine in engines:
        await engine.close()


async def read(stream: OutputStream) -> FinishReason | None:
    """Read to the end; gives its reason."""
    finish = None
    async for output in stream:
        finish = output.finish
    return finish


async def test_answers_arrive_as_they_are_made(start: Any) -> None:
    engine = await start(FakeBackend(eos_odds=ENDLESS))
    answer = await answer_of(engine, text_request("r", max_tokens=8))
    assert (answer.num_tokens, answer.finish) == (8, FinishReason.LENGTH)
    assert engine.stats.generated_tokens == 8
    assert engine.error == ""


async def test_the_model_is_described_when_it_is_loaded(start: Any) -> None:
    engine = await start()
    assert engine.info.vocabulary == 260
    assert engine.info.special_tokens[0] == "<|endoftext|>"


async def test_a_model_that_does_not_load_says_why() -> None:
    engine = InProcessEngine(runtime_config(), FakeBackend(load_error="truncated file"))
    with pytest.raises(EngineError, match="truncated file"):
        await engine.start()
    assert engine.error == "truncated file"
    with pytest.raises(EngineError, match="truncated file"):
        engine.submit(text_request("r"))
    await engine.close()


async def test_a_full_queue_refuses_with_seconds_to_wait(start: Any) -> None:
    gate = Gate()
    backend = FakeBackend(faults={0: Fault(wait=gate.wait)})
    engine = await start(backend, parallel=1, max_waiting=2)
    streams = [engine.submit(text_request(f"r{number}")) for number in range(3)]
    with pytest.raises(QueueFullError) as caught:
        engine.submit(text_request("r3"))
    assert caught.value.waiting == 2
    assert 1 <= caught.value.retry_after_s <= 120
    assert (engine.stats.running + engine.stats.waiting) == 3
    gate.opened.set()
    assert all(await asyncio.gather(*map(read, streams)))
    await answer_of(engine, text_request("r3"))


async def test_no_queue_at_all_still_runs_as_many_as_fit(start: Any) -> None:
    gate = Gate()
    engine = await start(FakeBackend(faults={0: Fault(wait=gate.wait)}), parallel=2, max_waiting=0)
    streams = [engine.submit(text_request(name)) for name in ("a", "b")]
    with pytest.raises(QueueFullError):
        engine.submit(text_request("c"))
    gate.opened.set()
    assert all(await asyncio.gather(*map(read, streams)))


async def test_a_reader_who_is_slow_gets_all_text_in_fewer_pieces(start: Any) -> None:
    engine = await start(FakeBackend(eos_odds=ENDLESS))
    whole = await answer_of(engine, text_request("quick", max_tokens=200))
    stream = engine.submit(text_request("slow", max_tokens=200))
    await answer_of(engine, text_request("other", max_tokens=250))
    pieces = [output async for output in stream]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum(piece.num_tokens for piece in pieces) == 200
    assert len(pieces) == 1
    assert pieces[0].num_prompt_tokens == 5


async def test_leaving_early_aborts_the_request(start: Any) -> None:
    gate = Gate()
    backend = FakeBackend(eos_odds=ENDLESS, faults={9: Fault(wait=gate.wait)})
    engine = await start(backend, parallel=1, **HUGE)
    stream = engine.submit(text_request("r", max_tokens=None))
    await anext(stream)
    await gate.until_reached()
    await stream.aclose()
    await stream.aclose()
    gate.opened.set()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    after = await answer_of(engine, text_request("after", max_tokens=3))
    assert after.finish is FinishReason.LENGTH
    assert engine.stats.generated_tokens < HUGE["context_tokens"] // 2


async def test_a_cancelled_reader_aborts_the_request(start: Any) -> None:
    gate = Gate()
    engine = await start(FakeBackend(faults={0: Fault(wait=gate.wait)}), parallel=1)
    task = asyncio.create_task(answer_of(engine, text_request("r", max_tokens=None)))
    await gate.until_reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.opened.set()
    await answer_of(engine, text_request("after", max_tokens=3))
    assert engine.stats.running == 0


async def test_abort_by_id_ends_with_abort(start: Any) -> None:
    gate = Gate()
    engine = await start(FakeBackend(faults={1: Fault(wait=gate.wait)}, eos_odds=ENDLESS), **HUGE)
    stream = engine.submit(text_request("r", max_tokens=None))
    await gate.until_reached()
    engine.abort("r")
    engine.abort("nobody")
    gate.opened.set()
    assert await read(stream) is FinishReason.ABORT


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (text_request("r", "x" * 300), "prompt"),
        (text_request("r", ""), "prompt"),
        (Request(id="r", prompt_tokens=(5, 260)), "prompt"),
        (Request(id="r", prompt_tokens=(-1,)), "prompt"),
        (Request(id="r", prompt_tokens=(1,) * 256), "prompt"),
        (Request(id="r"), "prompt"),
        (Request(id="r", prompt=(PromptPart("a"),), prompt_tokens=(1,)), "prompt"),
        (text_request("r", max_tokens=0), "max_tokens"),
        (text_request("r", stop=("x" * 2000,)), "stop"),
        (text_request("r", sampling=SamplingParams(temperature=-1)), "temperature"),
    ],
)
async def test_what_can_never_run_is_refused_by_field(
    start: Any, request_: Request, param: str
) -> None:
    engine = await start()
    with pytest.raises(InvalidRequestError) as caught:
        await answer_of(engine, request_)
    assert caught.value.param == param
    await answer_of(engine, text_request("next", max_tokens=2))


async def test_an_id_in_use_is_refused(start: Any) -> None:
    gate = Gate()
    engine = await start(FakeBackend(faults={0: Fault(wait=gate.wait)}))
    stream = engine.submit(text_request("r"))
    with pytest.raises(InvalidRequestError, match="runs already"):
        engine.submit(text_request("r"))
    gate.opened.set()
    await read(stream)


@pytest.mark.parametrize("fault", [Fault(code=-3), Fault(error="device lost")])
async def test_a_broken_backend_ends_everybody_with_the_reason(start: Any, fault: Fault) -> None:
    engine = await start(FakeBackend(faults={3: fault}, eos_odds=ENDLESS), parallel=2)
    answers = await asyncio.gather(
        *(answer_of(engine, text_request(f"r{number}")) for number in range(5))
    )
    assert {answer.finish for answer in answers} == {FinishReason.ERROR}
    assert all(answer.ends[0].error == engine.error for answer in answers)
    assert "code -3" in engine.error or "device lost" in engine.error
    with pytest.raises(EngineError):
        engine.submit(text_request("late"))


async def test_a_step_over_its_bound_turns_health_red_and_ends_everybody(start: Any) -> None:
    gate = Gate()
    backend = FakeBackend(faults={2: Fault(wait=gate.wait)}, eos_odds=ENDLESS)
    engine = await start(backend, step_timeout_s=0.2)
    async with asyncio.timeout(WAIT_S):
        answer = await answer_of(engine, text_request("r"))
    assert answer.finish is FinishReason.ERROR
    assert "longer than 0.2 s" in engine.error
    gate.opened.set()


async def test_an_idle_engine_is_not_taken_for_a_hanging_one(start: Any) -> None:
    engine = await start(step_timeout_s=0.04)
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, done.set)
    await done.wait()
    assert engine.error == ""
    await answer_of(engine, text_request("r"))


async def test_drain_lets_the_running_finish_and_takes_no_more(start: Any) -> None:
    gate = Gate()
    engine = await start(FakeBackend(faults={0: Fault(wait=gate.wait)}))
    reader = asyncio.create_task(answer_of(engine, text_request("r", max_tokens=5)))
    await gate.until_reached()
    drain = asyncio.create_task(engine.drain(WAIT_S))
    await asyncio.sleep(0)
    with pytest.raises(EngineError, match="shutting down"):
        engine.submit(text_request("late"))
    gate.opened.set()
    await drain
    assert (await reader).finish in (FinishReason.LENGTH, FinishReason.STOP)


async def test_drain_aborts_who_is_not_done_in_time(start: Any) -> None:
    engine = await start(FakeBackend(eos_odds=ENDLESS), **HUGE)
    reader = asyncio.create_task(answer_of(engine, text_request("r", max_tokens=None)))
    await asyncio.sleep(0)
    await engine.drain(0.05)
    assert (await reader).finish is FinishReason.ABORT


async def test_close_ends_who_still_runs_with_abort_and_may_be_called_twice() -> None:
    backend = FakeBackend(eos_odds=ENDLESS)
    engine = InProcessEngine(runtime_config(**HUGE), backend)
    await engine.start()
    stream = engine.submit(text_request("r", max_tokens=None))
    await anext(stream)
    await engine.close()
    assert await read(stream) is FinishReason.ABORT
    await engine.close()
    assert backend.closed
