"""Waiting on a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_never = threading.Event()


def wait_for(what: str, probe: Callable[[], T], timeout: float = 60, every: float = 0.1) -> T:
    """Call ``probe`` until it gives something true; fail with ``what`` and its last value.

    The last call begins after the time is up, so that a process that was stopped meanwhile looks.
    """
    deadline = time.monotonic() + timeout
    while True:
        is_last = time.monotonic() > deadline
        value = probe()
        if value:
            return value
        if is_last:
            raise AssertionError(f"{what}: not within {timeout} s; last seen: {value!r}")
        _never.wait(every)
