"""``python -m terrace.controller``: the operator's process.

Owns: wiring, the order of start and end, signals and exit codes. Does not own: any decision.
Start: probes -> lease -> trust key and full list -> watches and workers. A process that is not the
leader serves its probes and waits for the lease.
"""

from __future__ import annotations

import terrace_runtime.first_process  # noqa: F401 - before all that takes time

# isort: split
import argparse
import asyncio
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import structlog

from terrace.controller.cache import Cache
from terrace.controller.cluster import (
    ConfigurationError,
    Connection,
    HttpCluster,
    connection_of,
    load_configuration,
)
from terrace.controller.config import (
    BadConfigError,
    OperatorConfig,
    accelerator_table,
    config_from_env,
    read_accelerators,
)
from terrace.controller.context import Context
from terrace.controller.controller import Controller, Item
from terrace.controller.feed import run_feed
from terrace.controller.garbage import collect_at_rest
from terrace.controller.kinds import MODEL, POOL
from terrace.controller.lease import LeaderLease, LeaseLostError
from terrace.controller.metrics import Metrics
from terrace.controller.port import ClusterError
from terrace.controller.probes import Health, measure_lag, serve_probes
from terrace.controller.progress import ProgressReader
from terrace.controller.report import Reports, read_report
from terrace.controller.trust import BadTrustKeyError
from terrace_runtime.logs import add_log_options, chosen_options, configure_logging

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from terrace.api.names import Key
    from terrace.planner.accelerators import AcceleratorTable

log = structlog.get_logger()

EXIT_LEASE_LOST = 3
EXIT_CONFIG = 2
START_RETRY_S = 2.0
DISCOVERY_RETRY_S = 0.5
STOP_TIMEOUT_S = 5.0


class _StopError(Exception):
    """Raised inside the task group to end all tasks."""


def utc_now() -> datetime:
    """Wall clock."""
    return datetime.now(tz=UTC)


async def run(config: OperatorConfig, table: AcceleratorTable) -> int:
    """Serve until a signal (0) or until the lease is lost (3)."""
    configuration = await load_configuration()
    metrics, health, stop = Metrics(), Health(), asyncio.Event()
    _handle_signals(stop)
    cluster = HttpCluster(configuration, metrics)
    lease = LeaderLease(cluster, config, time.monotonic, utc_now)

    async def connect() -> Connection:
        return await connection_of(configuration)

    code = 0
    try:
        async with serve_probes(config.metrics_host, config.metrics_port, metrics, health):
            health.is_ready = lambda: lease.is_checked
            if await _lead(config, lease, stop):
                metrics.leader.set(1)
                await _work(config, table, cluster, metrics, health, lease, connect, stop)
    except* LeaseLostError as lost:
        log.warning("leadership lost, ending", error=str(lost.exceptions[0]))
        code = EXIT_LEASE_LOST
    except* _StopError:
        log.info("stopping")
    finally:
        metrics.leader.set(0)
        await _close(cluster, lease)
    return code


async def _lead(config: OperatorConfig, lease: LeaderLease, stop: asyncio.Event) -> bool:
    """Wait for leadership; False when the process is to stop first."""
    if not config.leader_election:
        lease.is_checked = True
        return True
    acquire, stopped = asyncio.create_task(lease.acquire()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({acquire, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return acquire.done() and not acquire.cancelled() and acquire.exception() is None
    finally:
        acquire.cancel()
        stopped.cancel()


def _controller(
    config: OperatorConfig, table: AcceleratorTable, cluster: HttpCluster, metrics: Metrics
) -> Controller:
    clock, rng = time.monotonic, random.Random()  # noqa: S311 -- jitter, not a secret
    reports = Reports(clock, config.report_s)
    progress = ProgressReader(cluster, clock, config.progress_s)
    context = Context(cluster, Cache(), config, reports, progress, utc_now)
    context.accelerators = table
    return Controller(context, clock, rng, metrics)


async def _work(
    config: OperatorConfig,
    table: AcceleratorTable,
    cluster: HttpCluster,
    metrics: Metrics,
    health: Health,
    lease: LeaderLease,
    connect: Callable[[], Awaitable[Connection]],
    stop: asyncio.Event,
) -> None:
    """All of a leader's tasks; the first that ends ends them all."""
    controller = _controller(config, table, cluster, metrics)
    health.is_ready = lambda: controller.is_synced
    health.refresh = controller.observe_metrics
    synced, started = asyncio.Event(), asyncio.Event()

    async def feed() -> None:
        await synced.wait()
        await _discovered(cluster)
        await run_feed(controller.see, connect, config.namespaces, started)
        raise _StopError

    async def end() -> None:
        await _first(started, stop)
        _handle_signals(stop)  # kopf has put its own in place, which drain for five seconds.
        await stop.wait()
        raise _StopError

    async with asyncio.TaskGroup() as group:
        if config.leader_election:
            group.create_task(lease.hold())
        group.create_task(measure_lag(metrics))
        group.create_task(collect_at_rest(time.monotonic, lambda: controller.is_idle))
        group.create_task(_ask(controller))
        group.create_task(_reconcile(controller, synced))
        group.create_task(feed())
        group.create_task(end())


async def _reconcile(controller: Controller, synced: asyncio.Event) -> None:
    await _start(controller)
    synced.set()
    async with asyncio.TaskGroup() as workers:
        workers.create_task(controller.run_resync())
        workers.create_task(controller.context.events.run())
        for _ in range(controller.context.config.workers):
            workers.create_task(controller.run_worker())


async def _ask(controller: Controller) -> None:
    def learned(model: Key) -> None:
        controller.queue.add(Item(MODEL, model))

    async with aiohttp.ClientSession() as session:
        await controller.context.reports.run(partial(read_report, session), learned)


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of the events."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _handle_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _start(controller: Controller) -> None:
    """Trust key and first full list; tried until the cluster is able to give them."""
    while True:
        try:
            await controller.resync()
        except (ClusterError, BadTrustKeyError) as error:
            log.warning("cannot start yet", error=str(error), retry_s=START_RETRY_S)
            await asyncio.sleep(START_RETRY_S)
        else:
            log.info("synced", models=controller.context.cache.size(MODEL))
            return


async def _discovered(cluster: HttpCluster, retry_s: float = DISCOVERY_RETRY_S) -> None:
    """Wait until the server tells of our kinds: kopf asks which there are once, and never again."""
    while True:
        try:
            missing = [kind for kind in (POOL, MODEL) if not await cluster.is_discovered(kind)]
            error = f"not among what the server says it serves: {', '.join(map(str, missing))}"
        except ClusterError as refused:
            error = str(refused)
        else:
            if not missing:
                return
        log.warning("cannot watch yet", error=error, retry_s=retry_s)
        await asyncio.sleep(retry_s)


async def _close(cluster: HttpCluster, lease: LeaderLease, limit_s: float = STOP_TIMEOUT_S) -> None:
    """Never raises: how the process ends is decided by then."""
    try:
        async with asyncio.timeout(limit_s):
            await lease.release()
    except TimeoutError:
        log.warning("the Lease could not be released in time", limit_s=limit_s)
    finally:
        await cluster.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the environment and run; bad settings are one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m terrace.controller", description="The operator of Terrace."
    )
    parser.add_argument(
        "--accelerators",
        metavar="FILE",
        default="",
        help="rows that add to the accelerator table or replace rows of it (docs/accelerators.md); "
        "all other settings are environment variables",
    )
    add_log_options(parser)
    options = parser.parse_args(arguments)
    is_terminal = sys.stderr.isatty()
    configure_logging("operator", chosen_options(options, os.environ, is_terminal=is_terminal))
    given = {"TERRACE_ACCELERATORS": options.accelerators} if options.accelerators else {}
    try:
        config = config_from_env({**os.environ, **given})
        table = accelerator_table(config, read_accelerators(config))
        return asyncio.run(run(config, table))
    except (BadConfigError, ConfigurationError) as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - the message says it all
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
