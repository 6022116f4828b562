"""/metrics, /healthz and /readyz, and the measure of the event loop's lag.

Owns: the HTTP server of the operator. Does not own: the metrics (``metrics.py``).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from terrace.controller.metrics import Metrics

TICK_S = 0.05


class Health:
    """What the probes answer; changed by ``__main__`` as the process gets on."""

    def __init__(self) -> None:
        self.is_ready: Callable[[], bool] = lambda: False
        self.refresh: Callable[[], None] = lambda: None


@asynccontextmanager
async def serve_probes(
    host: str, port: int, metrics: Metrics, health: Health
) -> AsyncIterator[int]:
    """Serve while inside; yields the port. The answer itself proves that the loop runs."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if health.is_ready():
            return web.Response(text="ok\n")
        return web.Response(
            text="not ready: no leader known or the caches are filling\n", status=503
        )

    async def render(_: web.Request) -> web.Response:
        health.refresh()
        # A thousand models are 17,000 series: 0.1 s in which the loop should go on.
        body = await asyncio.to_thread(metrics.render)
        return web.Response(body=body, content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def measure_lag(metrics: Metrics) -> None:
    """Say at every tick how late the loop woke this task up."""
    while True:
        started_at = time.monotonic()
        await asyncio.sleep(TICK_S)
        metrics.loop_lag.observe(max(0.0, time.monotonic() - started_at - TICK_S))
