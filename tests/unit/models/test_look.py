"""Where each replica brings its own file: the Job only looks, and says what they will find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.fetching import LOOPBACK, failure, get, sha, stored
from support.file_server import FileServer
from support.origins import Hub, S3Store
from terrace_runtime.contract import FetchSpec

if TYPE_CHECKING:
    from pathlib import Path


def is_untouched(pod: Path) -> bool:
    """Nothing was written to the cache: in such a Job there is no volume for it."""
    return not any((pod / "models").iterdir())


async def test_a_look_tells_what_a_fetch_will_and_keeps_nothing(pod: Path, content: bytes) -> None:
    async with Hub(files={"m.gguf": content}).running() as hub:
        spec = FetchSpec(
            uri="hf://owner/repo/m.gguf", hf_endpoint=hub.url, allowed_networks=LOOPBACK
        )
        looked = await get(spec.model_copy(update={"look_only": True}))
        assert looked.path == f"/models/blobs/{sha(content)}.gguf"
        assert is_untouched(pod)
        assert await get(spec) == looked
        assert stored(pod, looked) == content


async def test_a_look_at_the_demo_model_tells_what_a_fetch_will(pod: Path) -> None:
    looked = await get(FetchSpec(uri="demo://draft", look_only=True))
    assert is_untouched(pod)
    assert await get(FetchSpec(uri="demo://draft")) == looked


async def test_the_users_checksum_is_the_digest_where_the_source_says_none(
    pod: Path, content: bytes
) -> None:
    async with FileServer(content).running() as server:
        spec = FetchSpec(
            uri=server.url, sha256=sha(content), allowed_networks=LOOPBACK, look_only=True
        )
        looked = await get(spec)
        assert looked.facts is not None
        assert looked.facts.digest == sha(content)
        assert is_untouched(pod)


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_digest_that_nobody_says_is_asked_for_by_field(
    pod: Path, content: bytes, parts: int
) -> None:
    names = ["m.gguf"] if parts == 1 else ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    objects = {f"bucket/{name}": content for name in names}
    async with S3Store(objects=objects).running() as store:
        spec = FetchSpec(
            uri=f"s3://bucket/{names[0]}",
            s3_endpoint=store.url,
            allowed_networks=LOOPBACK,
            look_only=True,
        )
        found = failure(await get(spec))
    assert (found.reason, found.permanent) == ("ChecksumRequired", True)
    assert "modelCache.sharing is PerReplica" in found.message
    assert ("set source.sha256" in found.message) == (parts == 1)
    assert is_untouched(pod)
