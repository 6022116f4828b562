"""Secrets: read by reference, sent to one origin, and found in no text that we write."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from support.fetching import LOOPBACK, QUICK, failure, read_here
from support.file_server import status
from support.origins import Cdn, Hub, Registry, S3Store
from terrace_runtime.contract import FetchProgress, FetchSpec
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.fetch import fetch
from terrace_runtime.models.progress import ProgressReporter
from terrace_runtime.models.remote import Bearer
from terrace_runtime.models.resolve import resolve
from terrace_runtime.models.secrets import Secrets, read_secrets
from terrace_runtime.models.sources import HttpSource
from terrace_runtime.models.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from support.origins import Origin

SECRETS = {
    "token": "tok-9d2f7c+very/secret",
    "username": "somebody",
    "password": "pass-77aa-very-secret",
    "AWS_ACCESS_KEY_ID": "AKIDVERYSECRET",
    "AWS_SECRET_ACCESS_KEY": "aws-1c3e-very-secret",
    "AWS_SESSION_TOKEN": "session-55ee-very-secret",
}


def mount(pod: Path, values: dict[str, str]) -> str:
    (pod / "secret").mkdir()
    for key, value in values.items():
        (pod / "secret" / key).write_text(value)
    return "/secret"


async def all_words(pod: Path, server: Origin, uri: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a fetch with all secrets says or leaves behind."""
    lines: list[FetchProgress] = []
    spec = FetchSpec.model_validate(
        {
            "uri": uri,
            "secret_dir": "/secret",
            "allowed_networks": LOOPBACK,
            f"{uri.partition(':')[0]}_endpoint": server.url,
        }
    )
    outcome = await fetch(Work(spec, ProgressReporter(lines.append), QUICK, read_here))
    files = [path for path in (pod / "models").rglob("*") if path.is_file()]
    texts = [outcome.model_dump_json(), *(line.model_dump_json() for line in lines)]
    texts += [path.read_bytes().decode("latin-1") for path in files] + [str(p) for p in files]
    texts += list(capsys.readouterr())
    return "\n".join(texts)


@pytest.mark.parametrize(
    "uri", ["hf://owner/repo", "s3://bucket/m.gguf", "oci://r.example/ai/model"]
)
async def test_no_text_holds_a_secret(
    pod: Path, content: bytes, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mount(pod, SECRETS)
    servers: dict[str, Origin] = {
        "hf": Hub(files={"m.gguf": content}),
        "s3": S3Store(objects={"bucket/m.gguf": content}),
        "oci": Registry(),
    }
    server = servers[uri.partition(":")[0]]
    hostile = "".join(f"{value}/" for value in SECRETS.values())
    async with server.running():
        for fault in (None, status(403), status(302, Location=f"http://10.0.0.1/{hostile}")):
            server.faults = [fault] * 9 if fault else []
            words = await all_words(pod, server, uri, capsys)
            for key, value in SECRETS.items():
                if key != "username":
                    assert value not in words


async def test_a_server_that_repeats_a_secret_is_not_quoted(pod: Path) -> None:
    """The message of an error may hold what a server said; never the secret in it."""
    mount(pod, {"token": SECRETS["token"]})
    said = f"bad token {SECRETS['token']}"
    async with Hub().running() as hub:
        hub.faults = [status(400, X_Error_Message=f"{said} {quote(SECRETS['token'], safe='')}")]
        spec = FetchSpec(
            uri="hf://owner/repo",
            secret_dir="/secret",
            hf_endpoint=hub.url,
            allowed_networks=LOOPBACK,
        )
        found = failure(await fetch(Work(spec, ProgressReporter(lambda _: None), QUICK)))
        assert "bad token *** ***" in found.message
        assert SECRETS["token"] not in found.message


def test_a_token_is_for_one_origin() -> None:
    access = Bearer("https://host/a/b", "secret")
    assert access.headers("https://host:443/other", {}) == {"Authorization": "Bearer secret"}
    for url in (
        "http://host/a",
        "https://host:444/a",
        "https://host.evil/a",
        "https://sub.host/a",
        "https://evil/https://host/",
    ):
        assert access.headers(url, {}) == {}


async def test_a_secret_never_goes_over_plain_http(pod: Path) -> None:
    where = mount(pod, {"token": "secret"})
    async with Cdn().running() as server:
        spec = FetchSpec(
            uri=f"{server.url}/m.gguf",
            sha256="0" * 64,
            secret_dir=where,
            allowed_networks=LOOPBACK,
        )
        found = failure(await fetch(Work(spec, ProgressReporter(lambda _: None), QUICK)))
        assert (found.reason, "https" in found.message) == ("Unauthorized", True)
        assert server.requests == []


async def test_an_https_source_sends_its_token() -> None:
    source = HttpSource("https://host/m.gguf")
    remote = await resolve(
        source,
        FetchSpec(uri=source.url),
        None,  # type: ignore[arg-type]  # an https source asks nobody
        Secrets({"token": "secret"}),
    )
    assert remote.access.headers(source.url, {}) == {"Authorization": "Bearer secret"}
    assert remote.access.headers("https://other/m.gguf", {}) == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "none of the keys"),
        ({"other": "x"}, "none of the keys"),
        ({"token": "a\r\nX-Header: b"}, "control characters"),
        ({"token": "x" * 70_000}, "too long"),
    ],
)
def test_a_secret_of_no_use_is_refused_without_its_value(
    pod: Path, values: dict[str, str], words: str
) -> None:
    where = mount(pod, values)
    with pytest.raises(FetchError, match=words) as caught:
        read_secrets(where)
    assert caught.value.reason == "Unauthorized"
    assert "X-Header" not in str(caught.value)


def test_a_secret_that_is_not_mounted_yet_may_come(pod: Path) -> None:
    with pytest.raises(FetchError, match="not mounted") as caught:
        read_secrets("/secret")
    assert not caught.value.permanent


def test_logins_of_a_docker_file_are_found_by_host() -> None:
    auth = base64.b64encode(b"me:pass:word").decode()
    auths = {
        "https://index.docker.io/v1/": {"auth": auth},
        "ghcr.io": {"username": "you", "password": "other-password"},
    }
    secrets = Secrets({".dockerconfigjson": json.dumps({"auths": auths})})
    assert secrets.login("docker.io") == ("me", "pass:word")
    assert secrets.login("registry-1.docker.io") == ("me", "pass:word")
    assert secrets.login("ghcr.io") == ("you", "other-password")
    assert secrets.login("quay.io") is None
    assert secrets.hide("a pass:word and other-password") == "a *** and ***"


@pytest.mark.parametrize("raw", ["", "{}", "[]", '{"auths": 1}', '{"auths": {"h": {"auth": "%"}}}'])
def test_a_broken_docker_file_is_told_where_it_is_needed(raw: str) -> None:
    secrets = Secrets({".dockerconfigjson": raw, "token": "x"})
    if not raw:
        assert secrets.login("h") is None
        return
    with pytest.raises(FetchError, match="dockerconfigjson"):
        secrets.login("h")


def test_secrets_print_as_nothing() -> None:
    assert "secret" not in repr(Secrets({"token": "secret"}))
