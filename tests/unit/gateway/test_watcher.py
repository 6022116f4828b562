"""The watch against a scripted API server: lists, events, cuts, 410s, refusals."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from support.gateway import raw_model, raw_pod, until
from terrace.api.names import Key
from terrace.gateway.registry import Registry
from terrace.gateway.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Raw = dict[str, Any]
DEMO = Key("default", "demo")


@dataclass
class ApiServer:
    """Lists what it is told and keeps watches open until the test speaks."""

    models: list[Raw] = field(default_factory=list)
    pods: list[Raw] = field(default_factory=list)
    version: int = 10
    page_size: int = 500
    refuse: dict[str, int] = field(default_factory=dict)
    """Status by ``list`` or ``watch`` of a resource, such as ``watch pods``."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    watches: dict[str, web.StreamResponse] = field(default_factory=dict)
    requests: dict[str, web.BaseRequest] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rsplit("/", 1)[-1].replace("inferencemodels", "models")
        verb = f"{'watch' if 'watch' in request.query else 'list'} {plural}"
        self.asked.append((verb, dict(request.query)))
        if status := self.refuse.get(verb):
            return web.Response(status=status)
        if verb.startswith("list"):
            return self._list(plural, request)
        response = web.StreamResponse()
        await response.prepare(request)
        self.watches[plural], self.requests[plural] = response, request
        while request.transport is not None:  # noqa: ASYNC110 - until the client hangs up
            await asyncio.sleep(0.005)
        return response

    def _list(self, plural: str, request: web.Request) -> web.Response:
        items = self.models if plural == "models" else self.pods
        start = int(request.query.get("continue", "0"))
        metadata: Raw = {"resourceVersion": str(self.version)}
        if start + self.page_size < len(items):
            metadata["continue"] = str(start + self.page_size)
        page = items[start : start + self.page_size]
        return web.Response(body=orjson.dumps({"metadata": metadata, "items": page}))

    async def say(self, plural: str, kind: str, raw: Raw) -> None:
        """Send one event on the open watch."""
        self.version += 1
        raw = raw | {"metadata": raw.get("metadata", {}) | {"resourceVersion": str(self.version)}}
        await self.watches[plural].write(orjson.dumps({"type": kind, "object": raw}) + b"\n")

    async def cut(self, plural: str, after: bytes = b"") -> None:
        """Break the watch, perhaps in the middle of a line."""
        watch, request = self.watches.pop(plural), self.requests.pop(plural)
        if after:
            await watch.write(after)
        assert request.transport is not None
        request.transport.abort()

    def queries(self, verb: str) -> list[dict[str, str]]:
        return [query for asked, query in self.asked if asked == verb]


@asynccontextmanager
async def watching(
    server: ApiServer, namespaces: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Watcher, Registry]]:
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    registry = Registry()
    async with ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")) as api:
        watcher = Watcher(api, registry, namespaces, random.Random(1))
        task = asyncio.create_task(watcher.run())
        try:
            yield watcher, registry
        finally:
            task.cancel()
            await asyncio.wait({task})
            await runner.cleanup()


def watched(server: ApiServer, *plurals: str) -> Callable[[], bool]:
    return lambda: all(plural in server.watches for plural in plurals or ("models", "pods"))


async def test_nothing_is_ready_before_both_lists_are_in() -> None:
    server = ApiServer([raw_model()], [raw_pod()], refuse={"list pods": 500})
    async with watching(server) as (watcher, registry):
        await until(lambda: registry.knows(DEMO))
        await until(lambda: "500" in watcher.not_ready())
        assert "pods" in watcher.not_ready()
        server.refuse.clear()
        await until(lambda: not watcher.not_ready())
        assert len(registry.endpoints(DEMO)) == 1
        assert set(watcher.ages()) == {"pods", "inferencemodels"}
        assert watcher.lists() == {"pods": 1, "inferencemodels": 1}
        assert max(watcher.ages().values()) < 60


async def test_events_change_the_registry() -> None:
    server = ApiServer([raw_model()])
    async with watching(server) as (_, registry):
        await until(watched(server))
        await server.say("pods", "ADDED", raw_pod())
        await until(lambda: len(registry.endpoints(DEMO)) == 1)
        await server.say("pods", "MODIFIED", raw_pod(ready=False))
        await until(lambda: not registry.endpoints(DEMO))
        await server.say("models", "DELETED", raw_model())
        await until(lambda: not registry.knows(DEMO))


async def test_a_cut_watch_resumes_where_it_was_without_a_new_list() -> None:
    server = ApiServer([raw_model()], [raw_pod()])
    async with watching(server) as (_, registry):
        await until(watched(server))
        await server.say("pods", "BOOKMARK", {})
        bookmark = str(server.version)
        await server.say("models", "MODIFIED", raw_model(served=["new"]))
        await until(lambda: registry.resolve("new"))
        await server.cut("pods", b'{"type": "DELETED", "obj')
        await until(watched(server, "pods"))
        assert server.queries("watch pods")[-1]["resourceVersion"] == bookmark
        assert len(server.queries("list pods")) == 1
        assert len(registry.endpoints(DEMO)) == 1


async def test_what_vanished_while_the_watch_was_cut_vanishes_with_the_410() -> None:
    server = ApiServer([raw_model(), raw_model("b")], [raw_pod(), raw_pod("other")])
    async with watching(server) as (_, registry):
        await until(watched(server))
        server.pods.pop()
        server.models.pop()
        for plural in ("pods", "models"):
            server.refuse[f"watch {plural}"] = 410
            await server.cut(plural)
            await until(lambda: len(server.queries(f"list {plural}")) > 1)  # noqa: B023 - at once
        await until(lambda: not registry.knows(Key("default", "b")))
        await until(lambda: [e.pod.name for e in registry.endpoints(DEMO)] == ["demo-cpu-0"])


async def test_an_error_event_with_410_lists_again_too() -> None:
    server = ApiServer([raw_model()], [raw_pod()])
    async with watching(server) as (_, registry):
        await until(watched(server))
        server.pods.clear()
        await server.say("pods", "ERROR", {"code": 410, "message": "too old resource version"})
        await until(lambda: not registry.endpoints(DEMO))


async def test_the_last_view_stays_while_the_api_server_is_away() -> None:
    server = ApiServer([raw_model()], [raw_pod()])
    async with watching(server) as (watcher, registry):
        await until(watched(server))
        server.refuse = {"watch pods": 503, "watch models": 503}
        await server.cut("pods")
        await server.cut("models")
        await until(lambda: len(server.queries("watch pods")) > 2)
        assert len(registry.endpoints(DEMO)) == 1
        assert watcher.not_ready() == ""
        server.refuse.clear()
        await until(watched(server))
        await server.say("pods", "DELETED", raw_pod())
        await until(lambda: not registry.endpoints(DEMO))


async def test_missing_kinds_and_missing_rights_say_what_to_do() -> None:
    server = ApiServer(refuse={"list models": 404, "list pods": 403})
    async with watching(server) as (watcher, _):
        await until(lambda: "crds/" in watcher.not_ready())
        await until(lambda: "RBAC" in watcher.not_ready())


async def test_long_lists_are_read_page_by_page() -> None:
    server = ApiServer([raw_model(f"m{n}") for n in range(7)], page_size=3)
    async with watching(server) as (_, registry):
        await until(lambda: len(registry.models()) == 7)
    assert len(server.queries("list models")) == 3


async def test_an_event_larger_than_any_buffer_is_read() -> None:
    server = ApiServer()
    async with watching(server) as (_, registry):
        await until(watched(server))
        huge = raw_model("huge")
        huge["status"]["noise"] = "x" * 3_000_000
        await server.say("models", "ADDED", huge)
        await until(lambda: registry.resolve("huge"))


async def test_only_pods_of_replicas_are_asked_for_and_named_namespaces_alone() -> None:
    server = ApiServer()
    async with watching(server, ("one", "two")) as (watcher, _):
        await until(lambda: not watcher.not_ready())
    selectors = {query["labelSelector"] for query in server.queries("list pods")}
    assert selectors == {"app.kubernetes.io/managed-by=terrace,app.kubernetes.io/component=runtime"}
    assert len(server.queries("list pods")) == len(server.queries("list models")) == 2
