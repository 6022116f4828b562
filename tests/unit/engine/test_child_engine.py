"""EngineClient with the engine in a child process, on the fake backend."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.engine_builders import FAKE, GREEDY, alone, answer_of, runtime_config, text_request
from support.waiting import wait_for
from terrace_runtime.engine.process import ChildEngine, child_environment
from terrace_runtime.engine.request import (
    EngineError,
    FinishReason,
    InvalidRequestError,
    PromptPart,
    Request,
)
from terrace_runtime.logs import ChildLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_S = 60.0
CONFIG = runtime_config()
HUGE = {"context_tokens": 1_000_000, "batch_tokens": 512}


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    """Starts engines in children and closes them after the test."""
    engines: list[ChildEngine] = []

    async def open_engine(arguments: dict[str, Any] | None = None, **changes: Any) -> ChildEngine:
        engine = ChildEngine(runtime_config(**changes), FAKE, arguments)
        engines.append(engine)
        async with asyncio.timeout(WAIT_S):
            await engine.start()
        return engine

    yield open_engine
    for engine in engines:
        await engine.close()


async def test_a_child_answers_what_an_engine_here_answers(start: Any) -> None:
    engine = await start()
    requests = [text_request(f"r{number}", f"text {number}", stop=("ll",)) for number in range(12)]
    answers = await asyncio.gather(*(answer_of(engine, request) for request in requests))
    assert [answer.facts for answer in answers] == [alone(one, CONFIG).facts for one in requests]


async def test_the_childs_model_is_described(start: Any) -> None:
    engine = await start()
    assert engine.info.special_tokens[0] == "<|endoftext|>"
    assert engine.info.context_tokens == 256


async def test_a_request_that_cannot_run_is_refused_by_the_child(start: Any) -> None:
    engine = await start()
    request = Request(
        id="r", prompt=(PromptPart("x" * 200), PromptPart("y" * 200)), sampling=GREEDY
    )
    with pytest.raises(InvalidRequestError, match="at least 400 tokens") as caught:
        await answer_of(engine, request)
    assert caught.value.param == "prompt"


async def test_leaving_early_stops_the_childs_work(start: Any) -> None:
    engine = await start({"eos_odds": 10**9}, **HUGE)
    stream = engine.submit(text_request("r", max_tokens=None))
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(WAIT_S):
        await engine._idle.wait()
    assert engine.stats.generated_tokens < 100_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
async def test_a_killed_child_ends_everybody_with_the_signals_name(
    start: Any, number: signal.Signals
) -> None:
    engine = await start({"eos_odds": 10**9}, parallel=2, **HUGE)
    streams = [engine.submit(text_request(f"r{n}", max_tokens=None)) for n in range(4)]
    await anext(streams[0])
    os.kill(engine.pid, number)
    async with asyncio.timeout(WAIT_S):
        for stream in streams:
            outputs = [output async for output in stream]
            assert outputs[-1].finish is FinishReason.ERROR
            assert number.name in outputs[-1].error
    assert number.name in engine.error
    with pytest.raises(EngineError, match=number.name):
        engine.submit(text_request("late"))


async def test_a_child_killed_while_idle_turns_health_red(start: Any) -> None:
    engine = await start()
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        assert "SIGKILL" in await engine.until_dead()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_the_whole_process_group_leaves_the_drain_to_the_parent(
    start: Any, number: signal.Signals
) -> None:
    engine = await start()
    os.kill(engine.pid, number)
    answer = await answer_of(engine, text_request("r", max_tokens=3))
    assert answer.finish is not FinishReason.ERROR
    assert engine.error == ""


async def test_a_stopped_child_is_found_out_and_killed(start: Any) -> None:
    engine = await start({"eos_odds": 10**9}, step_timeout_s=0.2, **HUGE)
    child = psutil.Process(engine.pid)
    # Before the request, for a child that is slow in its first step would be taken for hanging too.
    child.send_signal(signal.SIGSTOP)
    stream = engine.submit(text_request("r", max_tokens=None))
    async with asyncio.timeout(WAIT_S):
        outputs = [output async for output in stream]
    assert outputs[-1].finish is FinishReason.ERROR
    assert "longer than 0.2 s" in outputs[-1].error
    await engine.close()
    assert not child.is_running()


async def test_a_backend_that_fails_to_load_is_an_error_with_its_reason() -> None:
    engine = ChildEngine(CONFIG, FAKE, {"load_error": "no such tensor"})
    with pytest.raises(EngineError, match="no such tensor"):
        await engine.start()
    await engine.close()


async def test_a_backend_that_cannot_be_imported_is_an_error() -> None:
    engine = ChildEngine(CONFIG, "terrace_runtime.backend.nothing:Nothing")
    with pytest.raises(EngineError, match="cannot be imported"):
        await engine.start()
    await engine.close()


async def test_a_child_that_dies_of_an_illegal_instruction_names_the_build() -> None:
    engine = ChildEngine(CONFIG, FAKE, {"load_signal": int(signal.SIGILL)})
    with pytest.raises(EngineError, match=r"SIGILL.*CPU.*Rebuild"):
        await engine.start()


async def test_what_a_dying_child_said_last_is_in_the_reason_and_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The interpreter stands for a library that writes to stderr before it gives up.
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    lines: list[dict[str, Any]] = []

    def put(line: dict[str, Any]) -> None:
        if not lines:
            threading.Event().wait(1.5)  # Whoever takes the lines is slow at first.
        lines.append(line)

    log = ChildLog("engine", put)
    engine = ChildEngine(CONFIG, FAKE, {"load_signal": int(signal.SIGABRT)}, log)
    with pytest.raises(EngineError, match=r"SIGABRT: llama\.cpp gave up.* \(.*File .*\)"):
        await engine.start()
    assert any("Fatal Python error: Aborted" in line["event"] for line in lines)


async def test_close_leaves_no_child_behind(start: Any) -> None:
    engine = await start({"eos_odds": 10**9}, **HUGE)
    child = psutil.Process(engine.pid)
    stream = engine.submit(text_request("r", max_tokens=None))
    await anext(stream)
    await engine.close()
    assert not child.is_running()
    outputs = [output async for output in stream]
    assert outputs[-1].finish is FinishReason.ABORT
    await engine.close()


async def test_a_child_whose_parent_is_killed_goes_too() -> None:
    program = (
        "import asyncio, sys\n"
        "from support.engine_builders import *\n"
        "from terrace_runtime.engine.process import ChildEngine\n"
        "async def main():\n"
        "    engine = ChildEngine(runtime_config(), FAKE)\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), WAIT_S)))
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(wait_for, "the child's end", lambda: is_gone(child), WAIT_S)


def is_gone(process: psutil.Process) -> bool:
    """Ended, whether or not the first process of this machine has noticed."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_asks_for_huge_pages_unless_somebody_chose_otherwise() -> None:
    theirs = "glibc.malloc.arena_max=2"
    chosen = "glibc.malloc.hugetlb=0"
    found = [child_environment(ours)["GLIBC_TUNABLES"] for ours in _tunables("", theirs, chosen)]
    assert found == ["glibc.malloc.hugetlb=1", f"{theirs}:glibc.malloc.hugetlb=1", chosen]


def _tunables(*values: str) -> list[dict[str, str]]:
    return [{"GLIBC_TUNABLES": value} if value else {} for value in values]
