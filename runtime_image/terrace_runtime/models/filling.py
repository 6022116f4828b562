"""Brings one source's content into the cache, or waits for another Job that does.

Owns: locks, going on with what is there, the proof before the commit, and peeking at large files.
Does not own: one download (``download``), the checks (``proof``), the layout (``cache``). Next:
``fetch`` says where the content lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING, Final

from terrace_runtime.models.cache import container_path, content_key
from terrace_runtime.models.disk import disk_errors
from terrace_runtime.models.download import Download, size_of
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.proof import facts_of_files
from terrace_runtime.models.remote import Remote, RemoteFile
from terrace_runtime.models.remote_header import remote_facts
from terrace_runtime.models.work import known_outcome, outcome_of, proof_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from terrace_runtime.contract import AnyFacts, FetchOutcome
    from terrace_runtime.models.cache import ModelCache
    from terrace_runtime.models.progress import ProgressReporter
    from terrace_runtime.models.unfinished import Unfinished
    from terrace_runtime.models.web import Web
    from terrace_runtime.models.work import Work

_BEAT_S: Final = 1.0
_TOLD_BY_HEADERS: Final = frozenset({"UnsupportedFormat", "InvalidModel", "Truncated"})
"""Failures of a peek that the whole file would bring as well; of others the download says more."""


class Filling:
    """Bringing one source's content into the cache, or waiting for another Job that does."""

    def __init__(
        self, work: Work, cache: ModelCache, source: Remote | Path, web: Web | None
    ) -> None:
        """``web`` reaches a remote source; a path is copied."""
        self._work = work
        self._cache = cache
        self._web = web
        self._remote = source if isinstance(source, Remote) else Remote((RemoteFile(""),))
        self._copied = None if isinstance(source, Remote) else source
        self._count = len(self._remote.files)
        single = work.spec.sha256 if self._count == 1 else None
        self._digest = self._remote.digest or single
        self._key = content_key(self._digest) if self._digest else cache.key
        self._proof = proof_of(work, self._count, self._remote)

    async def run(self) -> FetchOutcome:
        """The outcome, once the content is in the cache."""
        while True:
            with self._cache.try_lock(self._key) as is_ours:
                if is_ours:
                    # Between our look and our lock another Job may have finished.
                    known = await known_outcome(self._work, self._cache)
                    return known or await self._fill()
            self._report_others()
            await asyncio.sleep(self._work.poll_s)

    def _report_others(self) -> None:
        parts = self._cache.unfinished(self._key, self._count)
        done = sum(part.size for part in parts)
        sizes = [
            file.size or part.note().total_bytes
            for file, part in zip(self._remote.files, parts, strict=True)
        ]
        self._work.reporter.report("download", done, sum(sizes) if all(sizes) else 0)

    async def _fill(self, *, is_retry: bool = False) -> FetchOutcome:
        known = await self._same_content()
        if known is not None:
            return known
        parts = self._cache.unfinished(self._key, self._count)
        was_resumed = any(part.size for part in parts)
        await self._get(parts)
        try:
            facts = await asyncio.to_thread(
                facts_of_files, [part.path for part in parts], self._proof, self._work.reporter
            )
        except FetchError as error:
            self._cache.discard(self._proof.spoilt(parts) or parts)
            if was_resumed and self._copied is None and not is_retry:
                # The old bytes may be at fault and not the source: once more without them.
                return await self._fill(is_retry=True)
            raise error from None
        return await self._commit(parts, facts)

    async def _commit(self, parts: Sequence[Unfinished], facts: AnyFacts) -> FetchOutcome:
        """Put the content in its place, under the lock by which it is deleted."""
        key = content_key(facts.digest)
        while key != self._key:
            with self._cache.try_lock(key) as is_ours:
                if is_ours:
                    self._cache.commit(parts, facts.digest)
                    return self._recorded(facts)
            await asyncio.sleep(self._work.poll_s)
        self._cache.commit(parts, facts.digest)
        return self._recorded(facts)

    async def _same_content(self) -> FetchOutcome | None:
        """Another source's file of the same digest; believed only after reading it once more."""
        if self._digest is None:
            return None
        paths = self._cache.blob_paths(self._digest, self._count)
        if not all(path.exists() for path in paths):
            return None
        with contextlib.suppress(FetchError):
            facts = await asyncio.to_thread(facts_of_files, paths, self._proof, self._work.reporter)
            return self._recorded(facts)
        return None

    def _recorded(self, facts: AnyFacts) -> FetchOutcome:
        self._cache.record(facts.digest, self._proof.digests)
        return outcome_of(container_path(facts.digest, self._count), facts)

    async def _get(self, parts: Sequence[Unfinished]) -> None:
        if self._copied is not None:
            await asyncio.to_thread(self._copy, self._copied, parts[0])
            return
        assert self._web is not None
        async with _beating(self._work.reporter):
            await self._download(parts, self._web)

    async def _download(self, parts: Sequence[Unfinished], web: Web) -> None:
        files, access = self._remote.files, self._remote.access
        sizes = [file.size for file in files]
        if len(files) > 1:
            # A part that is missing is told now, and the time left is that of all parts.
            sizes = [file.size or await size_of(file, access, web) for file in files]
        self._cache.check_room(sum(sizes) - sum(part.size for part in parts))
        for index, (file, part) in enumerate(zip(files, parts, strict=True)):
            others = sum(other.size for other in parts if other is not part)

            def on_bytes(done: int, total: int, index: int = index, others: int = others) -> None:
                sizes[index] = total or sizes[index]
                whole = sum(sizes) if all(sizes) else 0
                self._work.reporter.report("download", others + done, whole)

            async def on_size(
                done: int, total: int, before: int = others, part: Unfinished = part
            ) -> None:
                # What is there gives way where the download begins anew.
                self._cache.check_room(max(total - part.size, 0))
                if not before + done and max(total, sum(sizes)) >= self._work.peek_from_bytes:
                    await self._peek(web)

            await Download(file, access, part, on_size, on_bytes).run(web)
            sizes[index] = part.size

    async def _peek(self, web: Web) -> None:
        """Refuse what cannot be served after megabytes, not after hours.

        The download has begun and waits meanwhile: its answer said how large the file is.
        """
        try:
            await remote_facts(self._remote, self._work.spec.role, web)
        except FetchError as error:
            if error.permanent and error.reason in _TOLD_BY_HEADERS:
                raise

    def _copy(self, path: Path, part: Unfinished) -> None:
        self._cache.check_room(path.stat().st_size)
        with disk_errors(part.path):
            shutil.copyfile(path, part.path)


@contextlib.asynccontextmanager
async def _beating(reporter: ProgressReporter) -> AsyncIterator[None]:
    """Lines go on while no byte comes, with a rate that falls to nothing."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            reporter.beat()

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
