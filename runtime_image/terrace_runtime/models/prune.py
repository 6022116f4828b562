"""Deletes model files that nobody uses any more from the cache.

Owns: what is deleted in which order, and that no fetch loses what it is working on. Does not own:
which files are unused (the operator knows all models), the cache's layout (``cache``). A fetch
holds the lock of its content or its source; we take both before we delete. A source that a fetch
looked up a moment ago has a fresh entry and stays. A replica whose file went all the same says so,
and it is fetched again. Next: ``__main__`` prints the outcome.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import PruneOutcome
from terrace_runtime.models.cache import CacheFolder, content_key, read_entry
from terrace_runtime.models.disk import disk_errors
from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import PruneSpec

_KEY_LENGTH: Final = 64


def prune(spec: PruneSpec, now: float) -> PruneOutcome:
    """Delete what ``spec`` names; ``now`` in seconds since 1970. Never raises FetchError."""
    freed, kept, freed_bytes = list[str](), list[str](), 0
    before = now - spec.unused_seconds if spec.unused_seconds else math.inf
    try:
        cache = CacheFolder()
        with disk_errors(cache.root):
            entries = _entries(cache)
            for digest in dict.fromkeys(spec.digests):
                gone = _free(cache, digest, entries.get(digest, []), before)
                (kept if gone is None else freed).append(digest)
                freed_bytes += gone or 0
            if spec.abandoned_seconds:
                freed_bytes += _free_abandoned(cache, now - spec.abandoned_seconds)
        failure = None
    except FetchError as error:
        failure = error.failure()
        failure = failure.model_copy(update={"message": failure.message[:256]})
    return PruneOutcome(
        freed=tuple(freed), freed_bytes=freed_bytes, kept=tuple(kept), failure=failure
    )


def _entries(cache: CacheFolder) -> dict[str, list[Path]]:
    """Index files by the digest they lead to."""
    found: dict[str, list[Path]] = {}
    for path in (cache.root / "sources").glob("*.json"):
        entry = read_entry(path)
        if entry is not None:
            found.setdefault(entry.digest, []).append(path)
    return found


def _free(cache: CacheFolder, digest: str, entries: list[Path], before: float) -> int | None:
    """Bytes freed; ``None`` when it is being fetched or was asked for after ``before``."""
    with contextlib.ExitStack() as locks:
        for key in (content_key(digest), *(path.stem for path in entries)):
            if not locks.enter_context(cache.try_lock(key)):
                return None
        if any(_changed_at(path) > before for path in entries):
            return None
        # The index first: an entry without its file is fetched again, and the reverse is litter.
        for path in entries:
            path.unlink(missing_ok=True)
        file, folder = cache.blob_paths(digest)[0], cache.root / "blobs" / digest
        return _remove(file) + _remove(folder)


def _free_abandoned(cache: CacheFolder, before: float) -> int:
    """Bytes freed of downloads that nobody went on with."""
    freed = 0
    by_key: dict[str, list[Path]] = {}
    for path in (cache.root / "partial").iterdir():
        by_key.setdefault(path.name[:_KEY_LENGTH], []).append(path)
    for key, paths in by_key.items():
        inside = [file for path in paths if path.is_dir() for file in path.iterdir()]
        with cache.try_lock(key) as is_ours:
            if is_ours and all(_changed_at(path) < before for path in (*paths, *inside)):
                freed += sum(map(_remove, paths))
    return freed


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> int:
    """Bytes of what was at ``path``, a file or a folder of files."""
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.iterdir())
        shutil.rmtree(path)
        return size
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
