"""Deleting from the cache: what is named goes, what a fetch works on stays."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from support.fetching import LOOPBACK, get, leftovers, sha
from support.gguf_files import model_file
from support.origins import Hub, S3Store
from support.split_files import split_model
from terrace_runtime.contract import (
    MAX_PRUNED,
    MAX_TERMINATION_BYTES,
    FetchFailure,
    FetchSpec,
    ModelFacts,
    PruneOutcome,
    PruneSpec,
)
from terrace_runtime.models.cache import CacheFolder, ModelCache, content_key
from terrace_runtime.models.prune import prune

if TYPE_CHECKING:
    from pathlib import Path

NOW = time.time() + 10_000
CHAT, DRAFT = FetchSpec(uri="demo://chat"), FetchSpec(uri="demo://draft")


async def fetched(spec: FetchSpec) -> ModelFacts:
    outcome = await get(spec)
    assert outcome.facts is not None
    return outcome.facts


def files(pod: Path, folder: str) -> list[str]:
    return sorted(path.name for path in (pod / "models" / folder).iterdir())


async def test_a_file_goes_with_its_entries_and_others_stay(pod: Path) -> None:
    chat, draft = await fetched(CHAT), await fetched(DRAFT)
    outcome = prune(PruneSpec(digests=(chat.digest,)), NOW)
    assert (outcome.freed, outcome.freed_bytes) == ((chat.digest,), chat.file_bytes)
    assert outcome.kept == ()
    assert files(pod, "blobs") == [f"{draft.digest}.gguf"]
    assert len(files(pod, "sources")) == 1
    assert await fetched(CHAT) == chat


async def test_what_is_not_there_counts_as_freed_and_frees_nothing(pod: Path) -> None:
    outcome = prune(PruneSpec(digests=("0" * 64, "0" * 64)), NOW)
    assert (outcome.freed, outcome.freed_bytes) == (("0" * 64,), 0)


async def test_a_split_file_goes_with_all_its_parts(pod: Path, tmp_path: Path) -> None:
    cache = CacheFolder()
    parts = split_model(tmp_path / "m", 3)
    unfinished = cache.unfinished("k" * 64, 3)
    for part, target in zip(parts, unfinished, strict=True):
        target.path.write_bytes(part.read_bytes())
    digest = sha(b"set")
    spec = FetchSpec(uri="https://host/m-00001-of-00003.gguf")
    store = ModelCache(spec)
    store.commit(unfinished, digest)
    store.record(digest, [sha(part.read_bytes()) for part in parts])
    assert store.entry() is not None
    outcome = prune(PruneSpec(digests=(digest,)), NOW)
    assert outcome.freed_bytes == sum(part.stat().st_size for part in parts)
    assert (files(pod, "blobs"), files(pod, "sources")) == ([], [])
    assert store.entry() is None


@pytest.mark.parametrize("by_content", [True, False])
async def test_what_is_being_fetched_stays(pod: Path, *, by_content: bool) -> None:
    chat = await fetched(CHAT)
    cache = ModelCache(CHAT)
    key = content_key(chat.digest) if by_content else cache.key
    with cache.try_lock(key) as is_ours:
        assert is_ours
        outcome = prune(PruneSpec(digests=(chat.digest,)), NOW)
        assert (outcome.freed, outcome.kept) == ((), (chat.digest,))
    assert cache.entry() is not None


async def test_what_was_asked_for_a_moment_ago_stays(pod: Path) -> None:
    chat = await fetched(CHAT)
    (entry,) = (pod / "models" / "sources").iterdir()
    spec, now = PruneSpec(digests=(chat.digest,), unused_seconds=1000), time.time()
    os.utime(entry, (now - 500, now - 500))
    assert prune(spec, now).kept
    os.utime(entry, (now - 2000, now - 2000))
    await fetched(CHAT)  # Asks again: the entry is fresh.
    assert prune(spec, now).kept
    os.utime(entry, (now - 2000, now - 2000))
    assert prune(spec, now).freed


async def test_abandoned_downloads_go_and_running_ones_stay(pod: Path) -> None:
    cache = CacheFolder()
    (single,), split = cache.unfinished("a" * 64), cache.unfinished("b" * 64, 2)
    (running,) = cache.unfinished("c" * 64)
    for target in (single, *split, running):
        target.path.write_bytes(bytes(100))
        target.note_path.write_bytes(b"{}")
    spec = PruneSpec(digests=(), abandoned_seconds=60)
    assert prune(spec, time.time()).freed_bytes == 0
    with cache.try_lock("c" * 64):
        assert prune(spec, time.time() + 100).freed_bytes == 3 * 102
    assert leftovers(pod) == [f"{'c' * 64}.json", f"{'c' * 64}.part"]


async def test_a_cache_that_cannot_be_written_is_said(pod: Path) -> None:
    (pod / "models").rmdir()
    (pod / "models").write_bytes(b"a file in the way")
    outcome = prune(PruneSpec(digests=("0" * 64,)), NOW)
    assert outcome.failure is not None
    assert not outcome.failure.permanent


async def test_fetches_and_prunes_at_once_never_fail(pod: Path, tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in split_model(tmp_path / "m", 2)}
    whole = model_file(tmp_path / "whole.gguf").read_bytes()
    objects = {f"bucket/{name}.gguf": whole for name in "ab"}
    async with Hub(files=parts).running() as hub, S3Store(objects=objects).running() as store:
        s3 = {"s3_endpoint": store.url, "allowed_networks": LOOPBACK}
        specs = [
            FetchSpec(uri="hf://owner/repo", hf_endpoint=hub.url, allowed_networks=LOOPBACK),
            *(FetchSpec.model_validate({"uri": f"s3://bucket/{name}.gguf"} | s3) for name in "ab"),
        ]
        known = tuple({(await fetched(spec)).digest for spec in specs})
        assert len(known) == 2
        freed, is_over = 0, asyncio.Event()

        async def delete() -> None:
            nonlocal freed
            while not is_over.is_set():
                outcome = await asyncio.to_thread(prune, PruneSpec(digests=known), NOW)
                assert outcome.failure is None
                freed += bool(outcome.freed_bytes)

        async def want(spec: FetchSpec) -> None:
            rounds = 0
            while rounds < 15 or freed < 2:
                rounds += 1
                assert (await fetched(spec)).digest in known

        deleting = asyncio.create_task(delete())
        await asyncio.gather(*(want(spec) for spec in specs * 2))
        is_over.set()
        await deleting


def test_the_longest_outcome_fits_a_termination_message() -> None:
    digests = tuple(f"{number:064x}" for number in range(MAX_PRUNED))
    longest = PruneOutcome(
        kept=digests,
        freed_bytes=2**60,
        failure=FetchFailure(reason="DownloadFailed", message="é" * 256, permanent=False),
    )
    assert len(longest.model_dump_json(exclude_defaults=True).encode()) <= MAX_TERMINATION_BYTES
