"""What the operator waits for before it watches, and that its end is what was decided."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from terrace.api import names
from terrace.controller import __main__ as program
from terrace.controller.cluster import HttpCluster
from terrace.controller.kinds import MODEL
from terrace.controller.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GROUP = {"name": names.GROUP, "versions": [{"groupVersion": names.API_VERSION}]}
LISTS = f"/apis/{names.API_VERSION}"


def resources(*plurals: str) -> dict[str, Any]:
    return {"resources": [{"name": plural} for plural in plurals]}


@asynccontextmanager
async def server(answers: dict[str, list[Any]]) -> AsyncIterator[HttpCluster]:
    """Answers each path with the next of its list, again and again with the last; None is a 404."""

    async def answer(request: web.Request) -> web.Response:
        left = answers.get(request.path, [None])
        body = left.pop(0) if len(left) > 1 else left[0]
        return web.json_response(body or {}, status=404 if body is None else 200)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    cluster = HttpCluster(configuration, Metrics())
    try:
        yield cluster
    finally:
        await cluster.close()
        await runner.cleanup()


async def test_a_kind_is_there_when_both_lists_of_the_server_name_it() -> None:
    whole = {"/apis": [{"groups": [GROUP]}], LISTS: [resources(MODEL.plural)]}
    for path, late in (("/apis", {"groups": []}), (LISTS, None), (LISTS, resources("others"))):
        async with server(whole | {path: [late]}) as cluster:
            assert not await cluster.is_discovered(MODEL)
    async with server(whole) as cluster:
        assert await cluster.is_discovered(MODEL)


async def test_watching_waits_until_the_server_tells_of_both_kinds() -> None:
    both = resources(names.MODEL_PLURAL, names.POOL_PLURAL)
    answers: dict[str, list[Any]] = {
        "/apis": [{"groups": []}, {"groups": [GROUP]}],
        LISTS: [resources(names.POOL_PLURAL), None, both],
    }
    async with server(answers) as cluster:
        await program._discovered(cluster, retry_s=0.01)
    assert (len(answers["/apis"]), answers[LISTS]) == (1, [both])


class SilentLease:
    """A server that never answers."""

    async def release(self) -> None:
        await asyncio.Event().wait()


async def test_a_server_that_is_silent_at_the_end_changes_nothing_about_it() -> None:
    async with server({}) as cluster:
        await program._close(cluster, SilentLease(), limit_s=0.01)  # type: ignore[arg-type]  # all it needs
