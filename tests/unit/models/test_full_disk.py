"""A cache on a real, small file system that somebody else fills in the middle of a download."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

import terrace_runtime
from support.fetching import LOOPBACK, QUICK, failure, get, read_here, sha, stored
from support.file_server import FileServer
from support.origins import Cdn
from terrace_runtime.contract import FetchProgress, FetchSpec
from terrace_runtime.models.fetch import fetch
from terrace_runtime.models.progress import ProgressReporter
from terrace_runtime.models.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = (Path(terrace_runtime.__file__).parent / "demo" / "chat.gguf").read_bytes()


@pytest.fixture
def small_disk(pod: Path) -> Iterator[Path]:
    """20 MiB, of which the cache keeps 16 free where it can."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = pod / "models"
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.root
async def test_a_disk_that_somebody_else_fills_keeps_what_came(pod: Path, small_disk: Path) -> None:
    ballast, arrived = small_disk / "ballast", asyncio.Event()

    def on_progress(progress: FetchProgress) -> None:
        if progress.done_bytes > 100_000:
            arrived.set()

    async def fill_in_the_middle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"ETag": f'"{sha(CONTENT)[:16]}"', "Content-Length": str(len(CONTENT))}
        )
        await response.prepare(request)
        await response.write(CONTENT[:500_000])
        await arrived.wait()
        with ballast.open("wb", buffering=0) as file:
            file.write(bytes(19_500_000))
        await response.write(CONTENT[500_000:])
        return response

    async with Cdn(files={"m.gguf": CONTENT}).running() as server:
        server.faults = [fill_in_the_middle]
        spec = FetchSpec(uri=f"{server.url}/m.gguf", sha256=sha(CONTENT), allowed_networks=LOOPBACK)
        reporter = ProgressReporter(on_progress, interval_s=0)
        found = failure(await fetch(Work(spec, reporter, QUICK, read_here)))
        assert (found.reason, found.permanent) == ("DiskFull", False)
        assert "No space left" in found.message
        again = failure(await get(spec))
        assert (again.reason, "free" in again.message) == ("DiskFull", True)
        ballast.unlink()
        assert stored(pod, await get(spec)) == CONTENT
        start = int(server.requests[-1].headers["Range"][6:-1])
        assert 0 < start < len(CONTENT)


@pytest.mark.root
async def test_a_model_larger_than_the_disk_is_refused_before_its_first_byte(
    pod: Path, small_disk: Path
) -> None:
    large = CONTENT + bytes(4 * 2**20)
    async with Cdn(files={"m.gguf": large}).running() as server:
        spec = FetchSpec(uri=f"{server.url}/m.gguf", sha256=sha(large), allowed_networks=LOOPBACK)
        found = failure(await get(spec))
        assert (found.reason, found.permanent) == ("DiskFull", False)
        assert list((small_disk / "partial").iterdir()) == []


@pytest.mark.root
async def test_bytes_of_a_download_that_begins_anew_are_no_want_of_room(
    pod: Path, small_disk: Path
) -> None:
    older = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    old = FileServer(older, etag='"v1"')
    async with FileServer(CONTENT, etag='"v2"').running() as server:
        server.faults = [old.cut_after(len(CONTENT) - 100_000)]
        # Room for one such file, and not for the half that came of it besides.
        with (small_disk / "ballast").open("wb", buffering=0) as file:
            file.write(bytes(4 * 2**20 - len(CONTENT) - 300_000))
        spec = FetchSpec(uri=server.url, sha256=sha(CONTENT), allowed_networks=LOOPBACK)
        assert stored(pod, await get(spec)) == CONTENT
