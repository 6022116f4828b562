"""The HTTPS server that the API server asks for logs.

Owns: /containerLogs, /pods, /healthz, and a sentence for what a host node cannot do. Every client
must show a certificate of the cluster's CA. Does not own: log files (``pods/log_reader.py``).
"""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from aiohttp import web

from terrace.local.pods.context import log_folder
from terrace.local.pods.log_reader import LogOptions, read_log, runs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from terrace.local.node_pods import NodePods, PodWork
    from terrace.local.pods.logs import ContainerLog

_UNSUPPORTED = (
    "{what} is not supported on the host node: its pods are host processes without a container"
    " runtime; use a shell on this machine, the pod's files are under its TERRACE_POD_ROOT\n"
)
_MAX_DIGITS = 18
"""A number of so many digits fits 64 bits."""
_REDIRECTED = ("exec", "attach", "portForward", "run")


@dataclass(frozen=True)
class _Asked:
    """Which run of which container, and how to read it."""

    folder: Path
    run: int
    options: LogOptions
    live: ContainerLog | None


class KubeletApi:
    """Serves the pods of one node."""

    def __init__(self, pods: NodePods) -> None:
        self._pods = pods
        self._runner: web.AppRunner | None = None

    async def start(self, address: str, port: int, context: ssl.SSLContext) -> int:
        """Listens; port 0 lets the kernel choose. Returns the port."""
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/pods", self._list)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for what in _REDIRECTED:
            app.router.add_route("*", f"/{what}/{{rest:.*}}", self._refuse)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, address, port, ssl_context=context)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stops listening; open log streams end."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _list(self, _: web.Request) -> web.Response:
        items = [work.manifest for work in self._pods.work.values()]
        body = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        return web.Response(text=json.dumps(body), content_type="application/json")

    async def _refuse(self, request: web.Request) -> web.Response:
        what = request.path.split("/")[1]
        return web.Response(status=501, text=_UNSUPPORTED.format(what=what))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        asked = self._asked(request)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        async for piece in read_log(asked.folder, asked.run, asked.options, asked.live):
            await response.write(piece)
        await response.write_eof()
        return response

    def _asked(self, request: web.Request) -> _Asked:
        """Raises 404 or 400 with a sentence for ``kubectl``."""
        where = request.match_info
        work = self._pods.find(where["namespace"], where["pod"])
        if work is None:
            raise web.HTTPNotFound(text=f'pod "{where["pod"]}" is not on this node\n')
        name = where["container"]
        spec = work.manifest["spec"]
        if name not in {
            one["name"] for one in (spec.get("initContainers") or []) + spec["containers"]
        }:
            raise web.HTTPBadRequest(text=f'container "{name}" is not in pod "{where["pod"]}"\n')
        settings = self._pods.settings
        folder = log_folder(settings, where["namespace"], where["pod"], work.uid, name)
        try:
            options = log_options(request.query, time.time_ns())
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        found = runs(folder)
        is_previous = request.query.get("previous") == "true"
        if is_previous and len(found) <= 1:
            text = f'previous terminated container "{name}" in pod "{where["pod"]}" not found\n'
            raise web.HTTPBadRequest(text=text)
        if not found:
            text = f'container "{name}" in pod "{where["pod"]}" is waiting to start\n'
            raise web.HTTPBadRequest(text=text)
        if is_previous:
            return _Asked(folder, found[-2], options, None)
        return _Asked(folder, found[-1], options, _live(work, name))


def log_options(query: Mapping[str, str], now_ns: int) -> LogOptions:
    """Parses kubelet's query; raises ValueError naming the parameter."""
    since_ns = None
    if "sinceSeconds" in query:
        since_ns = now_ns - _number(query, "sinceSeconds") * 1_000_000_000
    if "sinceTime" in query:
        try:
            moment = datetime.fromisoformat(query["sinceTime"])
        except ValueError as error:
            raise ValueError(f"sinceTime: {query['sinceTime']!r} is not RFC 3339") from error
        since_ns = int(moment.timestamp() * 1_000_000_000)
    return LogOptions(
        is_following=query.get("follow") in {"true", "1"},
        has_timestamps=query.get("timestamps") in {"true", "1"},
        tail_lines=_number(query, "tailLines") if "tailLines" in query else None,
        max_bytes=_number(query, "limitBytes") if "limitBytes" in query else None,
        since_ns=since_ns,
    )


def server_context(cert: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """TLS that lets in only clients with a certificate of ``client_ca``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client_ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(cert, key)
    return context


def _number(query: Mapping[str, str], name: str) -> int:
    text = query[name]
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ValueError(f"{name}: {text!r} is not a whole number")
    return int(text)


def _live(work: PodWork, container: str) -> ContainerLog | None:
    runner = work.runner.runner(container) if work.runner else None
    return runner.run.log if runner and runner.run else None
