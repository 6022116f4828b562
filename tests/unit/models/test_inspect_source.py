"""Headers of remote files: bounded bytes, all parts, and the digest that the source names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.fetching import LOOPBACK, QUICK, failure, sha
from support.file_server import body, endless, status
from support.gguf_files import model_file
from support.lora_files import lora_file
from support.origins import Cdn, Hub, S3Store
from support.split_files import split_model
from terrace_runtime.contract import FetchOutcome, ModelFacts
from terrace_runtime.models.addresses import AddressRule
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect_source import Question, inspect_source
from terrace_runtime.models.remote import Remote, RemoteFile
from terrace_runtime.models.remote_header import Windows, remote_facts
from terrace_runtime.models.web import open_web

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from support.origins import Origin

NO_DIGEST = "0" * 64


@pytest.fixture
def large(tmp_path: Path) -> bytes:
    """A model whose weights are many times its header."""
    return model_file(tmp_path / "m.gguf", layers=6, embedding=512, vocabulary=4096).read_bytes()


async def inspected(what: str, **environment: str) -> FetchOutcome:
    return await inspect_source(Question(what, "model", False, LOOPBACK, environment))


def asked_bytes(server: Origin) -> int:
    """Upper bound of the bytes that were asked for."""
    total = 0
    for request in server.requests:
        if request.headers.get("Range"):
            first, last = request.headers["Range"][6:].split("-")
            total += int(last) - int(first) + 1
    return total


async def facts_by(server: Origin, windows: Windows) -> ModelFacts:
    async with open_web(AddressRule(LOOPBACK), QUICK) as session:
        remote = Remote((RemoteFile(f"{server.url}/m.gguf"),))
        facts = await remote_facts(remote, "model", session, windows)
    assert isinstance(facts, ModelFacts)
    return facts


async def test_a_header_is_read_in_growing_windows_and_the_weights_are_not(large: bytes) -> None:
    async with Cdn(files={"m.gguf": large}).running() as server:
        facts = await facts_by(server, Windows(first_bytes=1000))
        assert (facts.layer_count, facts.file_bytes, facts.digest) == (6, len(large), NO_DIGEST)
        ranges = [request.headers["Range"] for request in server.requests]
        assert ranges[:2] == ["bytes=0-999", "bytes=1000-3999"]
        assert asked_bytes(server) < len(large) / 4


async def test_a_server_that_ignores_ranges_is_left_early(large: bytes) -> None:
    async with Cdn().running() as server:
        server.faults = [body(large) for _ in range(9)]
        facts = await facts_by(server, Windows(first_bytes=1000))
        assert (facts.layer_count, facts.file_bytes) == (6, len(large))


async def test_a_header_that_never_ends_costs_bounded_bytes(tmp_path: Path) -> None:
    liar = model_file(tmp_path / "m.gguf").read_bytes()[:500] + bytes(10_000)
    liar = liar[:8] + (60_000).to_bytes(8, "little") + liar[16:]
    async with Cdn(files={"m.gguf": liar}).running() as server:
        with pytest.raises(FetchError) as caught:
            await facts_by(server, Windows(first_bytes=600, most_bytes=2400))
        assert caught.value.permanent
        assert asked_bytes(server) <= 4 * 2400


async def test_a_body_of_unknown_length_is_refused() -> None:
    async with Cdn().running() as server:
        server.faults = [endless(b"GGUF")] * 3
        with pytest.raises(FetchError, match="how long"):
            await facts_by(server, Windows())


async def test_the_hub_names_the_digest_of_what_was_not_read(large: bytes) -> None:
    async with Hub(files={"m.gguf": large}).running() as hub:
        outcome = await inspected("hf://owner/repo", HF_ENDPOINT=hub.url)
        assert outcome.facts is not None
        assert outcome.facts.digest == sha(large)
        assert len(hub.requests) == 2


async def test_the_environment_has_the_token_of_the_hub(large: bytes) -> None:
    async with Hub(files={"m.gguf": large}, token="hf_secret").running() as hub:
        assert failure(await inspected("hf://owner/repo", HF_ENDPOINT=hub.url)).reason == (
            "Unauthorized"
        )
        outcome = await inspected("hf://owner/repo", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
        assert outcome.facts is not None


async def test_whoever_is_logged_in_to_the_hub_needs_no_variable(
    large: bytes, tmp_path: Path
) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text("hf_secret\n")
    async with Hub(files={"m.gguf": large}, token="hf_secret").running() as hub:
        outcome = await inspected("hf://owner/repo", HF_ENDPOINT=hub.url, HOME=str(tmp_path))
        assert outcome.facts is not None


async def test_the_environment_has_the_keys_of_s3(large: bytes) -> None:
    store = S3Store(objects={"bucket/m.gguf": large}, keys={"id": "aws-secret"})
    async with store.running():
        outcome = await inspected(
            "s3://bucket/m.gguf",
            AWS_ENDPOINT_URL_S3=store.url,
            AWS_ACCESS_KEY_ID="id",
            AWS_SECRET_ACCESS_KEY="aws-secret",
        )
        assert outcome.facts is not None


async def test_parts_are_read_together(tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in split_model(tmp_path / "m", 3, layers=4)}
    async with Hub(files=parts).running() as hub:
        outcome = await inspected("hf://owner/repo", HF_ENDPOINT=hub.url)
        assert outcome.facts is not None
        assert (outcome.facts.parts, outcome.facts.layer_count) == (3, 4)
        assert outcome.facts.file_bytes == sum(map(len, parts.values()))
    local = await inspected(str(tmp_path / "m-00001-of-00003.gguf"))
    assert local.facts is not None
    assert local.facts.model_copy(update={"digest": outcome.facts.digest}) == outcome.facts


async def test_private_addresses_are_refused_unless_they_are_allowed(large: bytes) -> None:
    async with Cdn(files={"m.gguf": large}).running() as server:
        question = Question(f"{server.url}/m.gguf")
        assert failure(await inspect_source(question)).reason == "AddressRefused"
        assert (await inspected(f"{server.url}/m.gguf")).facts is not None
        by_environment = {"TERRACE_ALLOWED_NETWORKS": "10.0.0.0/8, 127.0.0.0/8"}
        question = Question(f"{server.url}/m.gguf", environment=by_environment)
        assert (await inspect_source(question)).facts is not None


async def test_local_files_have_a_digest_on_demand(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf")
    plain = await inspected(str(path))
    assert plain.facts is not None
    assert plain.facts.digest == NO_DIGEST
    proved = await inspect_source(Question(str(path), with_digest=True))
    assert proved.facts is not None
    assert proved.facts.digest == sha(path.read_bytes())


async def test_an_adapter_has_file_facts(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.gguf")
    outcome = await inspect_source(Question(str(path), role="adapter"))
    assert outcome.file is not None
    assert outcome.file.architecture == "llama"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("/none/m.gguf", "NotFound"),
        ("demo://none", "NotFound"),
        ("pvc://claim/m.gguf", "NotFound"),
        ("ftp://host/m.gguf", "DownloadFailed"),
        ("hf://owner", "DownloadFailed"),
        ("oci://host/name:tag:tag", "DownloadFailed"),
    ],
)
async def test_what_cannot_be_read_is_said(what: str, reason: str) -> None:
    assert failure(await inspected(what)).reason == reason


async def test_a_registry_at_a_private_address_is_refused() -> None:
    found = failure(await inspect_source(Question("oci://127.0.0.1:5000/ai/model:v1")))
    assert found.reason == "AddressRefused"


async def test_an_error_in_the_middle_is_tried_again(large: bytes) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        return await status(503)(request)

    async with Cdn(files={"m.gguf": large}).running() as server:
        server.faults = [server.answer, broken]
        assert (await facts_by(server, Windows(first_bytes=1000))).layer_count == 6
