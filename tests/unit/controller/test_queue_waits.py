"""Workers that wait for the queue: they end when they are told to, whatever comes then."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from terrace.controller.queue import WorkQueue


@pytest.mark.parametrize("moment", range(6))
async def test_a_worker_that_is_told_to_end_as_it_is_woken_ends(moment: int) -> None:
    queue: WorkQueue[str] = WorkQueue(time.monotonic, Random(1))
    queue.add_after("later", 3600)
    worker = asyncio.create_task(queue.get())
    await turns(10)
    queue.add_after("as late", 3600)  # wakes it, for nothing
    await turns(moment)
    worker.cancel()
    await turns(10)
    assert worker.cancelled()


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)
