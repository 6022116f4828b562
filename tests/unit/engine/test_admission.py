"""A request is refused when it would wait too long, by what others' answers took alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from support.engine_builders import CoreDriver, runtime_config, text_request
from support.virtual_time import in_virtual_time, now
from terrace_runtime.engine.frontend import EngineFrontend
from terrace_runtime.engine.messages import Abort, Ready, Stepped, Submit
from terrace_runtime.engine.request import (
    EngineStats,
    FinishReason,
    ModelInfo,
    QueueFullError,
    RequestOutput,
)

if TYPE_CHECKING:
    from terrace_runtime.engine.messages import Command

SERVICE_S = 10.0


class OneSlot(EngineFrontend):
    """Answers take ten seconds each, one after the other; it reports nothing else."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(runtime_config(parallel=1, max_waiting=1000, **changes))
        self._line: dict[str, float] = {}
        self._serving: asyncio.Task[None] | None = None

    def allow(self, seconds: float) -> None:
        """Let nobody wait longer than that from now on."""
        self._config = self._config.model_copy(update={"max_wait_s": seconds})

    @override
    async def _open(self) -> None:
        self._receive(Ready(ModelInfo(context_tokens=256, parallel=1, vocabulary=300, threads=1)))

    @override
    async def _shut(self) -> None:
        pass

    @override
    def _give_up(self) -> None:
        pass

    @override
    def _send(self, command: Command) -> None:
        match command:
            case Submit(request):
                self._line[request.id] = now()
                if self._serving is None:
                    self._serving = asyncio.create_task(self._serve())
            case Abort(request_id) if request_id in self._line:
                waited = now() - self._line.pop(request_id)
                self._end(request_id, FinishReason.ABORT, waited)
            case _:
                pass

    async def _serve(self) -> None:
        while self._line:
            request_id = next(iter(self._line))
            queued_s = now() - self._line.pop(request_id)
            await asyncio.sleep(SERVICE_S)
            self._end(request_id, FinishReason.STOP, queued_s)
        self._serving = None

    def _end(self, request_id: str, finish: FinishReason, queued_s: float) -> None:
        output = RequestOutput(request_id, "", 0, 5, finish=finish, queued_s=queued_s)
        self._receive(Stepped([output], EngineStats()))


async def ask(engine: OneSlot, name: str) -> None:
    async for _ in engine.submit(text_request(name)):
        pass


@in_virtual_time
async def test_waiting_does_not_make_the_answers_of_others_longer() -> None:
    engine = OneSlot(max_wait_s=120)
    await engine.start()

    async def client(name: str) -> None:
        for number in range(6):
            await ask(engine, f"{name}{number}")

    # Ten wait at any time, about 100 s each: within what is allowed.
    await asyncio.gather(*(client(f"c{number}-") for number in range(11)))
    await engine.close()


@in_virtual_time
async def test_who_would_wait_longer_hears_how_long() -> None:
    engine = OneSlot(max_wait_s=120)
    await engine.start()
    await ask(engine, "first")
    asked = [asyncio.create_task(ask(engine, f"r{number}")) for number in range(12)]
    await asyncio.sleep(0)
    engine.allow(119)
    with pytest.raises(QueueFullError, match=r"11 requests wait already .* about 120 s"):
        engine.submit(text_request("late"))
    await asyncio.gather(*asked)
    await engine.close()


@in_virtual_time
async def test_whoever_left_the_queue_says_nothing_about_answers() -> None:
    engine = OneSlot()
    await engine.start()
    await ask(engine, "first")
    running = asyncio.create_task(ask(engine, "running"))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(ask(engine, f"w{number}")) for number in range(3)]
    await asyncio.sleep(SERVICE_S * 0.9)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    again = [asyncio.create_task(ask(engine, f"a{number}")) for number in range(4)]
    await asyncio.sleep(0)
    engine.allow(49)
    with pytest.raises(QueueFullError, match=r"4 requests wait already .* about 50 s"):
        engine.submit(text_request("late"))
    await asyncio.gather(running, *again)
    await engine.close()


def test_a_request_that_never_began_waited_all_of_its_time() -> None:
    driver = CoreDriver(runtime_config(parallel=1))
    driver.submit(text_request("runs", max_tokens=100))
    driver.step()
    driver.submit(text_request("waits", timeout_s=30))
    driver.clock.now += 40
    driver.step()
    end = driver.answers["waits"].ends[0]
    assert end.finish is FinishReason.TIMEOUT
    assert end.queued_s >= 40
