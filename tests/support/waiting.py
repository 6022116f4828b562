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
    """Call ``probe`` until it gives something true; fail with ``what`` and its last value."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s; last seen: {value!r}")
        _never.wait(every)
