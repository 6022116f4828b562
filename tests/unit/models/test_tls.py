"""Sources over TLS: whose certificates count, and what is sent over it alone."""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from support.fetching import LOOPBACK, failure, get, sha, stored
from support.file_server import status
from support.origins import Cdn, Hub, Registry
from terrace.local.certificates import CLUSTER_CA, Leaf, write_pki
from terrace_runtime.contract import FetchOutcome, FetchSpec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's context; its authority is ``tmp_path/pki/ca.crt``."""
    leaf = Leaf("server", CLUSTER_CA, "server", hosts=("127.0.0.1",))
    (tmp_path / "pki").mkdir()
    write_pki(tmp_path / "pki", [leaf], dt.datetime.now(dt.UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pki" / "server.crt", tmp_path / "pki" / "server.key")
    return context


def secret(pod: Path, tmp_path: Path, **values: str) -> str:
    (pod / "secret").mkdir()
    (pod / "secret" / "ca.crt").write_bytes((tmp_path / "pki" / "ca.crt").read_bytes())
    for key, value in values.items():
        (pod / "secret" / key).write_text(value)
    return "/secret"


async def fetched(uri: str, **more: Any) -> FetchOutcome:
    spec = {"uri": uri, "allowed_networks": LOOPBACK} | more
    return await get(FetchSpec.model_validate(spec))


async def test_an_authority_that_nobody_knows_is_refused_and_one_of_the_secret_counts(
    pod: Path, tmp_path: Path, tls: ssl.SSLContext, content: bytes
) -> None:
    async with Cdn(files={"m.gguf": content}).running(tls) as server:
        found = failure(await fetched(f"{server.url}/m.gguf"))
        assert (found.reason, found.permanent) == ("DownloadFailed", True)
        assert "certificate refused" in found.message
        assert server.requests == []
        outcome = await fetched(f"{server.url}/m.gguf", secret_dir=secret(pod, tmp_path))
        assert stored(pod, outcome) == content


async def test_a_mirror_of_the_own_authority_may_want_no_login(
    pod: Path, tmp_path: Path, tls: ssl.SSLContext, content: bytes
) -> None:
    async with Hub(files={"m.gguf": content}).running(tls) as hub:
        where = secret(pod, tmp_path)
        outcome = await fetched("hf://owner/repo", hf_endpoint=hub.url, secret_dir=where)
        assert stored(pod, outcome) == content
        assert all("Authorization" not in request.headers for request in hub.requests)


async def test_a_token_goes_over_tls_and_not_to_where_it_redirects(
    pod: Path, tmp_path: Path, tls: ssl.SSLContext, content: bytes
) -> None:
    where = secret(pod, tmp_path, token="https-secret")
    async with Cdn(files={"m.gguf": content}).running(tls) as cdn, Cdn().running(tls) as server:
        server.faults = [status(302, Location=f"{cdn.url}/m.gguf")]
        outcome = await fetched(f"{server.url}/x.gguf", sha256=sha(content), secret_dir=where)
        assert stored(pod, outcome) == content
        assert server.requests[0].headers["Authorization"] == "Bearer https-secret"
        assert "Authorization" not in cdn.requests[0].headers


async def test_a_redirect_from_tls_to_plain_http_is_refused(
    pod: Path, tmp_path: Path, tls: ssl.SSLContext, content: bytes
) -> None:
    async with Cdn(files={"m.gguf": content}).running() as plain, Cdn().running(tls) as server:
        server.faults = [status(302, Location=f"{plain.url}/m.gguf")]
        where = secret(pod, tmp_path)
        found = failure(await fetched(f"{server.url}/x.gguf", secret_dir=where))
        assert (found.reason, "plain http" in found.message) == ("DownloadFailed", True)
        assert plain.requests == []


async def test_a_registry_is_reached_by_the_host_that_the_source_names(
    pod: Path, tmp_path: Path, tls: ssl.SSLContext, content: bytes
) -> None:
    async with Registry(login=("me", "registry-secret")).running(tls) as registry:
        registry.push("v1", [("application/gguf", "m.gguf", content)])
        host = registry.url.removeprefix("https://")
        where = secret(pod, tmp_path, username="me", password="registry-secret")
        outcome = await fetched(f"oci://{host}/ai/model:v1", secret_dir=where)
        assert stored(pod, outcome) == content


async def test_an_authority_that_is_none_is_told(pod: Path) -> None:
    (pod / "secret").mkdir()
    (pod / "secret" / "ca.crt").write_text("no certificate")
    found = failure(await fetched("https://host/m.gguf", secret_dir="/secret"))
    assert (found.reason, "ca.crt" in found.message) == ("Unauthorized", True)
