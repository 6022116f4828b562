"""A small API server in the test's own loop: objects by path, watches, and faults on demand."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from terrace.local.node_client import NodeClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Json = dict[str, Any]


@dataclass
class NodeApi:
    """Holds objects; ``watchers`` get every event; ``faults`` answer the next requests."""

    objects: dict[str, Json] = field(default_factory=dict)
    """Path -> object; a collection is everything right below its path."""
    writes: list[tuple[str, str, Json]] = field(default_factory=list)
    """Method, path, body."""
    watched_from: list[str] = field(default_factory=list)
    faults: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Method -> statuses to answer with instead, one per request."""
    version: int = 100
    _told: list[tuple[int, bytes]] = field(default_factory=list)
    """Version and event, for watches that begin after it."""
    _watches: list[asyncio.Queue[bytes | None]] = field(default_factory=list)

    def put(self, path: str, item: Json) -> Json:
        """Stores an object under a new resource version and tells the watchers."""
        is_new = path not in self.objects
        self.version += 1
        meta = {"uid": path.rpartition("/")[2], **item.get("metadata", {})}
        meta["resourceVersion"] = str(self.version)
        self.objects[path] = {**item, "metadata": meta}
        self.tell("ADDED" if is_new else "MODIFIED", self.objects[path])
        return self.objects[path]

    def drop(self, path: str, *, is_told: bool = True) -> None:
        """Deletes an object, in silence if asked."""
        item = self.objects.pop(path)
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        if is_told:
            self.tell("DELETED", item)

    def tell(self, kind: str, item: Json) -> None:
        """Sends an event to every watch."""
        line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
        if "metadata" in item:
            self._told.append((self.version, line))
        for watch in self._watches:
            watch.put_nowait(line)

    def cut(self) -> None:
        """Ends every watch in the middle of its stream."""
        for watch in self._watches:
            watch.put_nowait(None)
        self._watches.clear()

    def of(self, method: str) -> list[tuple[str, Json]]:
        """Path and body of every write with ``method``."""
        return [(path, body) for found, path, body in self.writes if found == method]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.faults[request.method]:
            status = self.faults[request.method].pop(0)
            return web.json_response({"message": f"fault {status}"}, status=status)
        if request.method != "GET":
            return await self._write(request)
        if request.query.get("watch"):
            return await self._watch(request)
        if request.path in self.objects:
            return web.json_response(self.objects[request.path])
        if request.path.rpartition("/")[2] in {"pods", "persistentvolumes"}:
            items = [
                item
                for path, item in self.objects.items()
                if path.rpartition("/")[0].endswith(request.path.rpartition("/")[2])
            ]
            body = {"metadata": {"resourceVersion": str(self.version)}, "items": items}
            return web.json_response(body)
        return web.json_response({"message": "not found"}, status=404)

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.writes.append((request.method, request.path, body))
        if request.method == "DELETE":
            if request.path in self.objects:
                self.drop(request.path)
            return web.json_response({})
        return web.json_response({"metadata": {"uid": "u", **body.get("metadata", {})}})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        events: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, told in self._told:
            if version > int(request.query["resourceVersion"]):
                events.put_nowait(told)
        self._watches.append(events)
        self.watched_from.append(request.query["resourceVersion"])
        while (line := await events.get()) is not None:
            await response.write(line)
        if request.transport is not None:
            request.transport.abort()
        return response


async def serving(api: NodeApi) -> AsyncIterator[NodeClient]:
    """A client of ``api`` over real HTTP."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = NodeClient(ApiClient(Configuration(host=host)), host)
    yield client
    await client.close()
    api.cut()
    await runner.cleanup()
