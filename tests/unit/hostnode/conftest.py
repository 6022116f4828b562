"""The bench of the pod runner's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from support.host_pods import Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Runs pods as processes below a folder of the test's own."""
    one = Bench(tmp_path)
    yield one
    await one.close()
