"""Fetching from each kind of source, against servers and files that misbehave."""

from __future__ import annotations

import asyncio
import resource
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.fetching import LOOPBACK, QUICK, failure, get, leftovers, read_here, sha, stored
from support.file_server import FileServer, announce, body, endless, status
from terrace_runtime.contract import FetchOutcome, FetchProgress, FetchSpec
from terrace_runtime.models.cache import ModelCache, content_key
from terrace_runtime.models.fetch import fetch
from terrace_runtime.models.progress import ProgressReporter
from terrace_runtime.models.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.models.unfinished import Unfinished
    from terrace_runtime.models.web import DownloadLimits


async def fetch_http(
    server: FileServer, digest: str | None = None, limits: DownloadLimits = QUICK
) -> FetchOutcome:
    spec = FetchSpec(
        uri=server.url, sha256=digest or sha(server.content), allowed_networks=LOOPBACK
    )
    return await get(spec, limits)


def unfinished(spec: FetchSpec) -> Unfinished:
    assert spec.sha256 is not None
    return ModelCache(spec).unfinished(content_key(spec.sha256))[0]


async def test_a_demo_model_lands_in_the_cache_once(pod: Path) -> None:
    first = await get(FetchSpec(uri="demo://chat"))
    blob = pod / first.path.lstrip("/")
    before = blob.stat().st_mtime_ns
    assert first.facts is not None
    assert first.path == f"/models/blobs/{first.facts.digest}.gguf"
    assert await get(FetchSpec(uri="demo://chat")) == first
    assert blob.stat().st_mtime_ns == before
    assert leftovers(pod) == []


async def test_a_demo_model_that_is_none_names_the_others(pod: Path) -> None:
    found = failure(await get(FetchSpec(uri="demo://none")))
    assert (found.reason, found.permanent) == ("NotFound", True)
    assert "chat" in found.message


async def test_a_blob_that_was_changed_is_fetched_again(pod: Path) -> None:
    outcome = await get(FetchSpec(uri="demo://draft"))
    good = stored(pod, outcome)
    (pod / outcome.path.lstrip("/")).write_bytes(good[:-1] + b"x")
    again = await get(FetchSpec(uri="demo://draft"))
    assert stored(pod, again) == good


async def test_a_claim_is_used_in_place(pod: Path, content: bytes) -> None:
    (pod / "source" / "a").mkdir()
    (pod / "source" / "a" / "m.gguf").write_bytes(content)
    outcome = await get(FetchSpec(uri="pvc://claim/a/m.gguf", sha256=sha(content)))
    assert outcome.path == "/source/a/m.gguf"
    assert outcome.facts is not None
    assert outcome.facts.digest == sha(content)
    assert not (pod / "models" / "blobs").exists()


async def test_a_link_out_of_the_claim_is_refused_and_one_inside_is_not(
    pod: Path, content: bytes
) -> None:
    (pod / "secret.gguf").write_bytes(content)
    (pod / "source" / "m.gguf").write_bytes(content)
    (pod / "source" / "out").symlink_to(pod / "secret.gguf")
    (pod / "source" / "in").symlink_to("m.gguf")
    (pod / "source" / "loop").symlink_to("loop")
    assert "leads out" in failure(await get(FetchSpec(uri="pvc://c/out"))).message
    assert failure(await get(FetchSpec(uri="pvc://c/loop"))).reason == "NotFound"
    assert failure(await get(FetchSpec(uri="pvc://c/none"))).reason == "NotFound"
    assert (await get(FetchSpec(uri="pvc://c/in"))).facts is not None


async def test_a_claim_with_other_content_is_told(pod: Path, content: bytes) -> None:
    path = pod / "source" / "m.gguf"
    for raw, sha256, reason in (
        (b"PK\x03\x04" + bytes(100), None, "UnsupportedFormat"),
        (content[:-1], None, "Truncated"),
        (content, "0" * 64, "ChecksumMismatch"),
    ):
        path.write_bytes(raw)
        found = failure(await get(FetchSpec(uri="pvc://c/m.gguf", sha256=sha256)))
        assert (found.reason, found.permanent) == (reason, True)


async def test_a_download_arrives_with_progress(pod: Path, content: bytes) -> None:
    lines: list[FetchProgress] = []
    async with FileServer(content).running() as server:
        spec = FetchSpec(uri=server.url, sha256=sha(content), allowed_networks=LOOPBACK)
        outcome = await fetch(Work(spec, ProgressReporter(lines.append), QUICK))
        assert stored(pod, outcome) == content
        assert await get(spec) == outcome
        assert len(server.requests) == 1
    assert lines[0].stage == "download"
    assert lines[-1].stage == "verify"
    assert all(line.total_bytes == len(content) for line in lines)
    assert leftovers(pod) == []


async def test_bytes_that_are_told_as_done_outlive_a_kill(pod: Path, content: bytes) -> None:
    told: list[tuple[int, int]] = []

    def compare(line: FetchProgress) -> None:
        if line.stage == "download":
            told.append((line.done_bytes, unfinished(spec).size))

    async with FileServer(content).running() as server:
        server.faults = [server.cut_after(1000)]
        spec = FetchSpec(uri=server.url, sha256=sha(content), allowed_networks=LOOPBACK)
        outcome = await fetch(Work(spec, ProgressReporter(compare, interval_s=0), QUICK, read_here))
        assert stored(pod, outcome) == content
    assert told[0][0] <= 1000
    assert all(in_file == done for done, in_file in told)


async def test_a_broken_download_goes_on_where_it_broke(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        server.faults = [server.cut_after(1000), status(503)]
        outcome = await fetch_http(server)
        assert stored(pod, outcome) == content
        assert server.requests[1]["Range"] == "bytes=1000-"
        assert server.requests[1]["If-Range"] == '"v1"'


async def test_a_download_that_breaks_again_and_again_goes_on_while_bytes_come(
    pod: Path, content: bytes
) -> None:
    async with FileServer(content).running() as server:
        server.faults = [server.cut_after(700), *[server.part_of(700)] * 12]
        assert stored(pod, await fetch_http(server)) == content
    assert len(server.requests) > QUICK.attempts + 10


async def test_a_source_that_changed_meanwhile_is_fetched_anew(pod: Path, content: bytes) -> None:
    async with FileServer(content, etag='"v2"').running() as server:
        old = FileServer(bytes(5000), etag='"v1"')
        old.content = b"GGUF" + bytes(len(content) - 4)
        server.faults = [old.cut_after(1000)]
        assert stored(pod, await fetch_http(server)) == content
        assert server.requests[1]["If-Range"] == '"v1"'


async def test_a_partial_that_is_complete_already_needs_no_more_bytes(
    pod: Path, content: bytes
) -> None:
    async with FileServer(content).running() as server:
        spec = FetchSpec(uri=server.url, sha256=sha(content), allowed_networks=LOOPBACK)
        server.faults = [server.cut_after(10), server.cut_after(10), server.cut_after(10)]
        failure(await get(spec, replace(QUICK, attempts=1)))
        unfinished(spec).path.write_bytes(content)
        assert stored(pod, await get(spec)) == content
        assert f"bytes={len(content)}-" in [seen.get("Range") for seen in server.requests]


async def test_a_spoilt_partial_is_thrown_away_and_fetched_anew(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        spec = FetchSpec(uri=server.url, sha256=sha(content), allowed_networks=LOOPBACK)
        server.faults = [server.cut_after(1000), status(500)]
        failure(await get(spec, replace(QUICK, attempts=1)))
        unfinished(spec).path.write_bytes(b"GGUF" + bytes(996))
        assert stored(pod, await get(spec)) == content


async def test_a_wrong_checksum_is_permanent_and_keeps_nothing(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        found = failure(await fetch_http(server, digest="0" * 64))
    assert (found.reason, found.permanent) == ("ChecksumMismatch", True)
    assert sha(content) in found.message
    assert leftovers(pod) == []
    assert list((pod / "models" / "blobs").iterdir()) == []


async def test_a_file_shorter_than_its_header_says_is_truncated(pod: Path, content: bytes) -> None:
    short = content[:-100]
    async with FileServer(short).running() as server:
        assert failure(await fetch_http(server)).reason == "Truncated"


@pytest.mark.parametrize(
    ("code", "reason", "permanent"),
    [
        (404, "NotFound", True),
        (410, "NotFound", True),
        (401, "Unauthorized", True),
        (403, "Unauthorized", True),
        (400, "DownloadFailed", True),
        (500, "DownloadFailed", False),
        (429, "DownloadFailed", False),
    ],
)
async def test_statuses_become_reasons(
    pod: Path, content: bytes, code: int, reason: str, *, permanent: bool
) -> None:
    async with FileServer(content).running() as server:
        server.faults = [status(code) for _ in range(9)]
        found = failure(await fetch_http(server))
        assert (found.reason, found.permanent) == (reason, permanent)
        assert str(code) in found.message
        assert len(server.requests) == (1 if permanent else QUICK.attempts)


async def test_retry_after_is_waited_for(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        server.faults = [status(429, Retry_After="1")]
        began = asyncio.get_running_loop().time()
        assert stored(pod, await fetch_http(server)) == content
        assert asyncio.get_running_loop().time() - began >= 1


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"<!DOCTYPE html><html>please log in</html>", "HTML"),
        (b"PK\x03\x04" + bytes(100), "PyTorch"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "safetensors"),
    ],
)
async def test_other_formats_are_refused_at_their_first_bytes(
    pod: Path, raw: bytes, words: str
) -> None:
    async with FileServer(raw).running() as server:
        found = failure(await fetch_http(server))
        assert (found.reason, found.permanent) == ("UnsupportedFormat", True)
        assert words in found.message
        assert len(server.requests) == 1


async def test_an_encoded_body_is_refused(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        server.faults = [body(b"\x1f\x8b" + bytes(50), Content_Encoding="gzip")]
        assert "gzip-encoded" in failure(await fetch_http(server)).message
        assert server.requests[0]["Accept-Encoding"] == "identity"


async def test_a_body_without_end_is_cut_off(pod: Path) -> None:
    async with FileServer(b"GGUF").running() as server:
        server.faults = [endless(b"GGUF\x03\x00\x00\x00")]
        limits = replace(QUICK, max_unsized_bytes=2**20)
        found = failure(await fetch_http(server, limits=limits))
        assert "more than 1048576 bytes" in found.message


async def test_a_file_larger_than_the_disk_is_refused_before_it_is_written(
    pod: Path, content: bytes
) -> None:
    async with FileServer(content).running() as server:
        server.faults = [announce(2**60)]
        found = failure(await fetch_http(server))
        assert (found.reason, found.permanent) == ("DiskFull", False)
        assert str(2**60) in found.message
        assert len(server.requests) == 1


async def test_a_disk_that_fills_up_is_told_and_keeps_what_came(pod: Path, content: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with FileServer(content).running() as server:
        # A limit on file sizes fails writes as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
        try:
            found = failure(await fetch_http(server))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (found.reason, found.permanent) == ("DiskFull", False)
        assert any(name.endswith(".part") for name in leftovers(pod))
        assert stored(pod, await fetch_http(server)) == content
        assert "Range" in server.requests[-1]


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/m.gguf",
        "http://[::ffff:10.0.0.1]/m.gguf",
        "http://[::1]/m.gguf",
    ],
)
async def test_a_redirect_to_a_private_address_is_refused(
    pod: Path, content: bytes, target: str
) -> None:
    async with FileServer(content).running() as server:
        server.faults = [status(302, Location=target)]
        found = failure(await fetch_http(server))
        assert (found.reason, found.permanent) == ("AddressRefused", True)


async def test_a_name_that_resolves_to_a_private_address_is_refused(
    pod: Path, content: bytes
) -> None:
    async with FileServer(content).running() as server:
        uri = server.url.replace("127.0.0.1", "localhost")
        found = failure(await get(FetchSpec(uri=uri, sha256=sha(content))))
        assert (found.reason, found.permanent) == ("AddressRefused", True)
        assert server.requests == []


async def test_redirects_are_followed_and_counted(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        server.faults = [status(302, Location=f"/{i}") for i in range(20)]
        assert "redirects" in failure(await fetch_http(server)).message
        assert len(server.requests) == QUICK.max_redirects + 1
    async with FileServer(content).running() as server:
        server.faults = [status(302, Location="/other"), status(307, Location=server.url)]
        assert stored(pod, await fetch_http(server)) == content


async def test_a_redirect_to_nowhere_is_refused(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        for target in ("ftp://host/x", "https://u:p@host/x", ""):
            server.faults = [status(302, Location=target) for _ in range(7)]
            assert failure(await fetch_http(server)).reason == "DownloadFailed"


async def test_a_closed_port_is_tried_again_and_then_given_up(pod: Path, content: bytes) -> None:
    server = FileServer(content)
    with socket.socket() as nobody:
        # Bound, so that nobody else can listen there meanwhile.
        nobody.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{nobody.getsockname()[1]}/model.gguf"
        found = failure(await fetch_http(server))
    assert (found.reason, found.permanent) == ("DownloadFailed", False)


async def test_two_jobs_at_once_download_once(pod: Path, content: bytes) -> None:
    async with FileServer(content).running() as server:
        outcomes = await asyncio.gather(*(fetch_http(server) for _ in range(3)))
        assert len(server.requests) == 1
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert stored(pod, outcomes[0]) == content


async def test_another_source_of_the_same_content_is_not_downloaded(
    pod: Path, content: bytes
) -> None:
    async with FileServer(content).running() as server:
        await fetch_http(server)
        server.url += "?mirror"
        assert stored(pod, await fetch_http(server)) == content
        assert len(server.requests) == 1


async def test_a_cache_that_cannot_be_written_is_said(pod: Path) -> None:
    (pod / "models").rmdir()
    (pod / "models").write_bytes(b"a file in the way")
    found = failure(await get(FetchSpec(uri="demo://chat")))
    assert (found.reason, found.permanent) == ("DownloadFailed", False)
    assert "cannot be written" in found.message


async def test_proxies_and_logins_of_the_environment_are_not_used(
    pod: Path, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password netrc-secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with FileServer(content).running() as server:
        assert stored(pod, await fetch_http(server)) == content
        assert "Authorization" not in server.requests[0]
