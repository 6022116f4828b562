"""Servers beside a test that does not await."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.origins import Origin


@contextmanager
def in_a_thread(*origins: Origin) -> Iterator[None]:
    """Run these servers until the end of the block."""
    loop, is_up, ending = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve(rest: tuple[Origin, ...]) -> None:
        if not rest:
            is_up.set()
            await ending.wait()
            return
        async with rest[0].running():
            await serve(rest[1:])

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(origins)))
    thread.start()
    try:
        assert is_up.wait(60)
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()
