"""When full passes over all objects happen: at rest, bounded where there is none."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

from support.engine_builders import Clock
from terrace.controller.garbage import (
    ALL_S,
    BUSY_S,
    LOOK_S,
    NEVER,
    QUIET_S,
    REST_S,
    Rest,
    collect_at_rest,
)


class Recorder:
    """Notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def collect(self) -> int:
        self.told.append("collect")
        return 0

    def freeze(self) -> None:
        self.told.append("freeze")

    def unfreeze(self) -> None:
        self.told.append("unfreeze")


def _looks(rest: Rest, clock: Clock, seconds: float, *, is_idle: bool) -> None:
    for _ in range(int(seconds / LOOK_S)):
        clock.now += LOOK_S
        rest.look(is_idle=is_idle)


def test_what_a_burst_left_is_looked_through_once_after_it() -> None:
    clock, seen = Clock(), Recorder()
    rest = Rest(clock, seen)
    _looks(rest, clock, 30.0, is_idle=False)
    assert seen.told == []
    _looks(rest, clock, REST_S + 100.0, is_idle=True)
    assert seen.told == ["collect", "freeze"]


def test_work_without_rest_is_interrupted_once_a_minute() -> None:
    clock, seen = Clock(), Recorder()
    rest = Rest(clock, seen)
    _looks(rest, clock, 3 * BUSY_S, is_idle=False)
    assert seen.told == ["collect", "freeze"] * 3


def test_events_that_nothing_follows_from_are_looked_through_now_and_then() -> None:
    clock, seen = Clock(), Recorder()
    rest = Rest(clock, seen)
    _looks(rest, clock, REST_S, is_idle=True)
    seen.told.clear()
    _looks(rest, clock, QUIET_S, is_idle=True)
    assert seen.told == ["collect", "freeze"]


def test_what_was_set_aside_is_looked_through_once_an_hour_and_at_rest_alone() -> None:
    clock, seen = Clock(), Recorder()
    rest = Rest(clock, seen)
    _looks(rest, clock, ALL_S + BUSY_S, is_idle=False)
    assert "unfreeze" not in seen.told
    seen.told.clear()
    _looks(rest, clock, REST_S, is_idle=True)
    assert seen.told == ["unfreeze", "collect", "freeze"]


async def test_python_begins_no_full_pass_by_itself_from_then_on() -> None:
    before = gc.get_threshold()
    looking = asyncio.create_task(collect_at_rest(Clock(), lambda: True))
    try:
        await asyncio.sleep(0)
        young, _, full = gc.get_threshold()
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        gc.set_threshold(*before)
    assert full == NEVER
    assert young > 0, "what is new is still looked through"
