"""The way to the API server: by the proxy that the environment names, and with our token alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from support.ports import own_address
from terrace.api.names import Key
from terrace.controller.cluster import (
    HttpCluster,
    connection_of,
    load_configuration,
    proxy_of,
)
from terrace.controller.kinds import MODEL
from terrace.controller.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path

PROXY = "http://proxy.example:3128"
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://api.example:1234"}}]
users: [{name: u, user: {token: our-own}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No proxies, a kubeconfig, and a netrc that has a word about every host."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "config").write_text(KUBECONFIG)
    (tmp_path / "netrc").write_text("default login somebody password else\n")
    # The client library looks at KUBECONFIG once, when it is imported.
    where = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(where, str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


@pytest.mark.parametrize(
    ("settings", "server", "wanted"),
    [
        ({}, "https://10.0.0.1:443", None),
        ({"HTTPS_PROXY": PROXY}, "https://10.0.0.1:443", PROXY),
        ({"https_proxy": PROXY}, "https://10.0.0.1:443", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://10.0.0.1:443", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.1"}, "https://10.0.0.1:443", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".svc,.example"}, "https://api.example", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "https://api.example", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "other"}, "https://api.example", PROXY),
    ],
)
def test_the_environment_names_the_proxy(
    settings: dict[str, str],
    server: str,
    wanted: str | None,
    environment: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        environment.setenv(name, value)
    assert proxy_of(server) == wanted


async def test_the_watches_go_the_way_that_the_writes_go(environment: pytest.MonkeyPatch) -> None:
    assert (await connection_of(await load_configuration())).proxy is None
    environment.setenv("HTTP_PROXY", PROXY)
    configuration = await load_configuration()
    assert configuration.proxy == (await connection_of(configuration)).proxy == PROXY


async def test_a_proxy_of_the_kubeconfig_counts_more(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = KUBECONFIG.replace('1234"', '1234", proxy-url: "http://own.example:1"')
    (tmp_path / "config").write_text(own)
    environment.setenv("HTTP_PROXY", PROXY)
    assert (await load_configuration()).proxy == "http://own.example:1"


async def test_calls_go_through_the_proxy_with_our_token_and_no_netrc(
    environment: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.raw_path, request.headers.get("Authorization")))
        return web.json_response({"metadata": {"name": "a"}})

    proxy = web.Application()
    proxy.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(proxy)
    await runner.setup()
    site = web.TCPSite(runner, own_address(3), 0)
    await site.start()
    try:
        address, port = runner.addresses[0][:2]
        environment.setenv("HTTP_PROXY", f"http://{address}:{port}")
        cluster = HttpCluster(await load_configuration(), Metrics())
        try:
            found = await cluster.get(MODEL, Key("n", "a"))
        finally:
            await cluster.close()
    finally:
        await runner.cleanup()
    assert found == {"metadata": {"name": "a"}}
    path = f"{MODEL.path('n')}/a"
    assert asked == [(f"http://api.example:1234{path}", "Bearer our-own")]
