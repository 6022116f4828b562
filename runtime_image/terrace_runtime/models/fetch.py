"""From a FetchSpec to a FetchOutcome: get the model file, prove it, read its facts.

Owns: the order of the steps, the checksum, and doing nothing twice. Does not own: each step
(``sources``, ``cache``, ``download``, ``inspect``) or exit codes (``__main__``). Runs in a Job;
several Jobs may run for one source, then one downloads and the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import MODEL_SOURCE_DIR, FetchOutcome, pod_path
from terrace_runtime.models.addresses import AddressRule
from terrace_runtime.models.cache import ModelCache, disk_errors
from terrace_runtime.models.content import check_magic
from terrace_runtime.models.download import DownloadLimits, download
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect import file_digest, read_facts
from terrace_runtime.models.sources import ClaimSource, DemoSource, HttpSource, parse_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.contract import FetchSpec, ModelFacts
    from terrace_runtime.models.progress import ProgressReporter

DEMO_DIR: Final = Path(__file__).parent.parent / "demo"
_LOCK_POLL_S: Final = 1.0


@dataclass(frozen=True)
class Work:
    """One fetch: what is wanted, and the means to it."""

    spec: FetchSpec
    reporter: ProgressReporter
    limits: DownloadLimits = field(default_factory=DownloadLimits)
    read_facts: Callable[[Path], ModelFacts] = read_facts
    """Reads a header in a child; tests of other things read it without one."""


async def fetch(work: Work) -> FetchOutcome:
    """Make a model usable and say where it is, or why it is not; never raises FetchError."""
    try:
        source = parse_source(work.spec)
        if isinstance(source, ClaimSource):
            facts = await asyncio.to_thread(_in_place, source, work)
            return FetchOutcome(path=f"{MODEL_SOURCE_DIR}/{source.path}", facts=facts)
        cache = ModelCache(work.spec)
        facts = await _cached(source, work, cache)
        return FetchOutcome(path=cache.container_path(facts.digest), facts=facts)
    except FetchError as error:
        return FetchOutcome(failure=error.failure())


def _in_place(source: ClaimSource, work: Work) -> ModelFacts:
    """Facts of a file in the user's claim; nothing is copied."""
    root = pod_path(MODEL_SOURCE_DIR).resolve()
    try:
        path = (root / source.path).resolve(strict=True)
    except (OSError, RuntimeError):
        raise FetchError(
            "NotFound", f"the claim {source.claim} holds no file {source.path}"
        ) from None
    if not path.is_relative_to(root):
        raise FetchError("NotFound", f"{source.path} is a link that leads out of the claim")
    if not path.is_file():
        raise FetchError("NotFound", f"{source.path} in the claim {source.claim} is not a file")
    return _inspect(path, work)


async def _cached(source: DemoSource | HttpSource, work: Work, cache: ModelCache) -> ModelFacts:
    """Facts of a file in the cache, fetched unless it is there."""
    while True:
        facts = cache.entry()
        if facts is not None:
            return facts
        with cache.try_lock() as is_ours:
            if is_ours:
                # Between our look and our lock another Job may have finished.
                return cache.entry() or await _fill(source, work, cache)
        with contextlib.suppress(FileNotFoundError):
            size = cache.partial.stat().st_size
            work.reporter.report("download", size, cache.note().total_bytes)
        await asyncio.sleep(_LOCK_POLL_S)


async def _fill(source: DemoSource | HttpSource, work: Work, cache: ModelCache) -> ModelFacts:
    spec = work.spec
    if spec.sha256 is not None and cache.blob(spec.sha256).exists():
        # Another source with the same content; believed only after reading it once more.
        with contextlib.suppress(FetchError):
            facts = await asyncio.to_thread(_inspect, cache.blob(spec.sha256), work)
            cache.record(facts)
            return facts
    was_resumed = cache.partial.exists()
    if isinstance(source, DemoSource):
        await asyncio.to_thread(_copy_demo, source, cache)
    else:
        rule = AddressRule(spec.allowed_networks)
        await download(source.url, cache, rule, work.reporter, work.limits)
    try:
        facts = await asyncio.to_thread(_inspect, cache.partial, work)
    except FetchError as error:
        cache.discard_partial()
        if was_resumed and isinstance(source, HttpSource):
            # The old part may be at fault and not the source: once more from the start.
            return await _fill(source, work, cache)
        raise error from None
    cache.commit(facts.digest)
    with disk_errors(cache.partial.parent):
        cache.record(facts)
    return facts


def _copy_demo(source: DemoSource, cache: ModelCache) -> None:
    path = DEMO_DIR / f"{source.name}.gguf"
    if not path.is_file():
        names = ", ".join(sorted(found.stem for found in DEMO_DIR.glob("*.gguf")))
        raise FetchError("NotFound", f"no demo model {source.name!r}; there are: {names}")
    cache.check_room(path.stat().st_size)
    with disk_errors(cache.partial):
        shutil.copyfile(path, cache.partial)


def _inspect(path: Path, work: Work) -> ModelFacts:
    """Prove the file: its kind, its header, its checksum; the cheap checks first."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            check_magic(file.read(512))
        work.reporter.report("inspect", 0, size)
        facts = work.read_facts(path)
        digest = file_digest(path, lambda done: work.reporter.report("verify", done, size))
    except OSError as error:
        raise FetchError(
            "InvalidModel", f"the file cannot be read: {error.strerror}", permanent=False
        ) from error
    wanted = work.spec.sha256
    if wanted is not None and digest != wanted:
        raise FetchError(
            "ChecksumMismatch", f"the file's sha256 is {digest}; source.sha256 says {wanted}"
        )
    return facts.model_copy(update={"digest": digest})
