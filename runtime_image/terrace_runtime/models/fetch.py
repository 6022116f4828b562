"""From a FetchSpec to a FetchOutcome: get the model file, prove it, read its facts.

Owns: the order of the steps, and doing nothing twice. Does not own: each step (``sources``,
``resolve``, ``cache``, ``download``, ``proof``) or exit codes (``__main__``). Runs in a Job;
several Jobs may run for one content, then one downloads and the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import MODEL_SOURCE_DIR, FetchOutcome, ModelFacts, pod_path
from terrace_runtime.models.addresses import AddressRule
from terrace_runtime.models.cache import ModelCache, content_key
from terrace_runtime.models.disk import disk_errors
from terrace_runtime.models.download import Download, size_of
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect_source import DEMO_DIR
from terrace_runtime.models.proof import Proof, ReadHeaders, facts_of_files, read_all_headers
from terrace_runtime.models.remote import Remote, RemoteFile
from terrace_runtime.models.resolve import resolve
from terrace_runtime.models.secrets import Secrets, read_secrets
from terrace_runtime.models.sources import ClaimSource, DemoSource, parse_source
from terrace_runtime.models.split import part_paths
from terrace_runtime.models.web import DownloadLimits, open_web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from terrace_runtime.contract import FetchSpec, FileFacts
    from terrace_runtime.models.progress import ProgressReporter
    from terrace_runtime.models.sources import RemoteSource
    from terrace_runtime.models.unfinished import Unfinished
    from terrace_runtime.models.web import Web

_BEAT_S: Final = 1.0


@dataclass(frozen=True)
class Work:
    """One fetch: what is wanted, and the means to it."""

    spec: FetchSpec
    reporter: ProgressReporter
    limits: DownloadLimits = field(default_factory=DownloadLimits)
    read_headers: ReadHeaders = read_all_headers
    """Reads headers in a child; tests of other things read them without one."""
    poll_s: float = 1.0
    """Between two looks whether another Job is done."""


async def fetch(work: Work) -> FetchOutcome:
    """Make a model usable and say where it is, or why it is not; never raises FetchError."""
    secrets = Secrets()
    try:
        source = parse_source(work.spec)
        if isinstance(source, ClaimSource):
            facts = await asyncio.to_thread(_in_place, source, work)
            return _outcome(f"{MODEL_SOURCE_DIR}/{source.path}", facts)
        cache = ModelCache(work.spec)
        known = await _known(work, cache)
        if known is not None:
            return known
        if isinstance(source, DemoSource):
            return await _Filling(work, cache, _demo(source), None).run()
        secrets = read_secrets(work.spec.secret_dir)
        return await _fetch_remote(source, work, cache, secrets)
    except FetchError as error:
        return FetchOutcome(failure=error.failure(secrets.hide))


def _in_place(source: ClaimSource, work: Work) -> ModelFacts | FileFacts:
    """Facts of a file in the user's claim; nothing is copied."""
    root = pod_path(MODEL_SOURCE_DIR).resolve()
    paths = [_inside(root, part, source.claim) for part in part_paths(source.path)]
    return facts_of_files(paths, _proof(work, len(paths)), work.reporter)


def _inside(root: Path, name: str, claim: str) -> Path:
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise FetchError("NotFound", f"the claim {claim} holds no file {name}") from None
    if not path.is_relative_to(root):
        raise FetchError("NotFound", f"{name} is a link that leads out of the claim")
    if not path.is_file():
        raise FetchError("NotFound", f"{name} in the claim {claim} is not a file")
    return path


def _demo(source: DemoSource) -> Path:
    path = DEMO_DIR / f"{source.name}.gguf"
    if not path.is_file():
        names = ", ".join(sorted(found.stem for found in DEMO_DIR.glob("*.gguf")))
        raise FetchError("NotFound", f"no demo model {source.name!r}; there are: {names}")
    return path


async def _known(work: Work, cache: ModelCache) -> FetchOutcome | None:
    """The outcome of a source that was fetched before; headers are cheap to read once more."""
    entry = cache.entry()
    if entry is None:
        return None
    paths = cache.blob_paths(entry.digest, len(entry.part_digests))
    try:
        facts = await asyncio.to_thread(work.read_headers, paths, work.spec.role)
    except FetchError:
        return None  # Deleted under our eyes, or refused by a newer reader: fetching says which.
    facts = facts.model_copy(update={"digest": entry.digest})
    return _outcome(cache.container_path(entry.digest, len(paths)), facts)


async def _fetch_remote(
    source: RemoteSource, work: Work, cache: ModelCache, secrets: Secrets
) -> FetchOutcome:
    async with open_web(AddressRule(work.spec.allowed_networks), work.limits) as web:
        remote = await resolve(source, work.spec, web, secrets)
        told, wanted = remote.files[0].sha256, work.spec.sha256
        if told is not None and wanted not in {None, told}:
            raise FetchError(
                "ChecksumMismatch",
                f"the source says that the file's sha256 is {told}; source.sha256 says {wanted}",
            )
        return await _Filling(work, cache, remote, web).run()


class _Filling:
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
        self._proof = _proof(work, self._count, self._remote)

    async def run(self) -> FetchOutcome:
        """The outcome, once the content is in the cache."""
        while True:
            with self._cache.try_lock(self._key) as is_ours:
                if is_ours:
                    # Between our look and our lock another Job may have finished.
                    known = await _known(self._work, self._cache)
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

    def _recorded(self, facts: ModelFacts | FileFacts) -> FetchOutcome:
        self._cache.record(facts.digest, self._proof.digests)
        return _outcome(self._cache.container_path(facts.digest, self._count), facts)

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

            download = Download(file, access, part, self._cache.check_room, on_bytes)
            await download.run(web)
            sizes[index] = part.size

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


def _proof(work: Work, count: int, remote: Remote | None = None) -> Proof:
    wanted: list[str | None] = [file.sha256 for file in remote.files] if remote else [None] * count
    return Proof(work.spec.role, work.spec.sha256, wanted, work.read_headers)


def _outcome(path: str, facts: ModelFacts | FileFacts) -> FetchOutcome:
    if isinstance(facts, ModelFacts):
        return FetchOutcome(path=path, facts=facts)
    return FetchOutcome(path=path, file=facts)
