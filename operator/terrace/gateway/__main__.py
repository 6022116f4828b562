"""``python -m terrace.gateway``: arguments and environment in, wired parts out.

Owns: configuration and the order of start and stop. Does not own: anything that runs after it.
Next: ``watcher.py`` fills the registry, ``server.py`` serves ``app.py``.
"""

from __future__ import annotations

import terrace_runtime.first_process  # noqa: F401 - before all that takes time

# isort: split
import argparse
import asyncio
import os
import random
import resource
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import uvloop
from prometheus_client import disable_created_metrics

from terrace import __version__
from terrace.gateway import server
from terrace.gateway.app import Gateway
from terrace.gateway.identity import Signer, TrustKeyError, read_private_key
from terrace.gateway.limits import MIB, Admission, Limits
from terrace.gateway.metrics import Metrics
from terrace.gateway.proxy import Proxy
from terrace.gateway.registry import Registry
from terrace.gateway.routing import Router
from terrace.gateway.upstream import make_session
from terrace.gateway.watcher import Watcher, connect
from terrace_runtime.contract import pod_path
from terrace_runtime.logs import add_log_options, chosen_options, configure_logging

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

log = structlog.get_logger("terrace.gateway")
TRUST_KEY = "/etc/terrace/trust/ed25519"
EXIT_BAD_CONFIG = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway; returns the exit code."""
    options = make_parser().parse_args(argv)
    is_terminal = sys.stderr.isatty()
    configure_logging("gateway", chosen_options(options, os.environ, is_terminal=is_terminal))
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
    _raise_file_limit()
    try:
        uvloop.run(_run(options))
    except TrustKeyError as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - the message says it all
        return EXIT_BAD_CONFIG
    return 0


async def _run(options: argparse.Namespace) -> None:
    limits = Limits(
        max_requests=options.max_requests,
        max_connections=4 * options.max_requests,
        max_body_bytes=options.max_body_mib * MIB,
    )
    signer = Signer(read_private_key(pod_path(TRUST_KEY)), time.time)
    registry = Registry()
    namespaces = [n.strip() for n in os.environ.get("TERRACE_WATCH_NAMESPACES", "").split(",")]
    async with await connect() as api, make_session(limits) as session:
        watcher = Watcher(api, registry, [n for n in namespaces if n])
        gateway = wire(registry, watcher, signer, session, limits)
        watching = asyncio.create_task(watcher.run())
        serving = asyncio.create_task(
            server.serve(
                server.make_server(
                    gateway,
                    limits,
                    host=options.host,
                    port=options.port,
                    drain_timeout_s=options.drain_timeout,
                ),
                gateway,
            )
        )
        log.info("started", version=__version__, host=options.host, port=options.port)
        await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await serving


def wire(
    registry: Registry,
    watcher: Watcher,
    signer: Signer,
    session: aiohttp.ClientSession,
    limits: Limits,
) -> Gateway:
    """The application from its parts."""
    admission = Admission(limits)
    metrics = Metrics(registry, watcher, admission)
    router = Router(random.Random(), time.monotonic)  # noqa: S311 - spreads load, guards nothing
    proxy = Proxy(registry, router, signer, session, limits, admission, metrics)
    return Gateway(registry, proxy, metrics, watcher.not_ready)


def make_parser() -> argparse.ArgumentParser:
    """The command line; the chart's arguments are tested against it."""
    defaults = Limits()
    parser = argparse.ArgumentParser(prog="python -m terrace.gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    parser.add_argument(
        "--max-requests",
        type=int,
        default=defaults.max_requests,
        help="requests under way before the next one gets 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-mib",
        type=int,
        default=defaults.max_body_bytes // MIB,
        help="MiB of one request body before it gets 413 (default: %(default)s)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=120,
        help="seconds that running answers get after SIGTERM (default: %(default)s)",
    )
    add_log_options(parser)
    return parser


def _raise_file_limit() -> None:
    """Two sockets per request: take all the file descriptors we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
