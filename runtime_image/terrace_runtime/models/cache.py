"""The model cache of a pool: blobs by digest, an index by source, locks, unfinished downloads.

Owns: the layout under MODEL_CACHE_DIR, atomic commits, room on the disk. Does not own: where bytes
come from, one download's own files (``unfinished``), deleting (``prune``). Layout:
``blobs/<digest>.gguf``, or ``blobs/<digest>/model-00001-of-00003.gguf`` for parts, as llama.cpp
looks for them; ``sources/<key>.json``, ``partial/``, ``locks/<key>``. A source's key is the sha256
of what names it, a content's key that of its digest. Next: replicas mount it read-only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terrace_runtime.contract import MODEL_CACHE_DIR, Digest, pod_path
from terrace_runtime.models.disk import disk_errors, sync_folder, try_lock, write_durably
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.split import MAX_PARTS, cached_name
from terrace_runtime.models.unfinished import Unfinished

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from terrace_runtime.contract import FetchSpec

_KEPT_FREE: Final = 16 * 2**20
"""Bytes left free, so that the index can still be written."""
_MAX_ENTRY_BYTES: Final = 2**20


class Entry(BaseModel):
    """What the index knows of a fetched source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    part_digests: tuple[Digest, ...] = Field(min_length=1, max_length=MAX_PARTS)
    marks: tuple[tuple[int, int], ...] = Field(max_length=MAX_PARTS)
    """Size and modification time (ns) of each part when it was proved."""


class CacheFolder:
    """The folder that all sources share."""

    def __init__(self) -> None:
        """Raises FetchError when the cache cannot be written."""
        self.root = pod_path(MODEL_CACHE_DIR)
        with disk_errors(self.root):
            for folder in ("blobs", "sources", "partial", "locks"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)

    def blob_paths(self, digest: str, count: int = 1) -> tuple[Path, ...]:
        """Where the parts of the file with this digest are or will be."""
        return tuple(self.root / name for name in _blob_names(digest, count))

    def unfinished(self, key: str, count: int = 1) -> tuple[Unfinished, ...]:
        """The downloads of the parts; several lie in a folder, which becomes the blob."""
        partial = self.root / "partial"
        if count == 1:
            return (Unfinished(partial / f"{key}.part", partial / f"{key}.json"),)
        with disk_errors(self.root):
            (partial / key).mkdir(exist_ok=True)
        return tuple(
            Unfinished(partial / key / cached_name(n, count), partial / f"{key}.{n}.json")
            for n in range(1, count + 1)
        )

    def try_lock(self, key: str) -> AbstractContextManager[bool]:
        """Whether this process may fetch, or delete, what ``key`` names."""
        return try_lock(self.root / "locks" / key)


def container_path(digest: str, count: int = 1) -> str:
    """The first part's path as replicas see it."""
    return f"{MODEL_CACHE_DIR}/{_blob_names(digest, count)[0]}"


def _blob_names(digest: str, count: int) -> list[str]:
    if count == 1:
        return [f"blobs/{digest}.gguf"]
    return [f"blobs/{digest}/{cached_name(n, count)}" for n in range(1, count + 1)]


class ModelCache(CacheFolder):
    """One source's place in the cache."""

    def __init__(self, spec: FetchSpec) -> None:
        """Raises FetchError when the cache cannot be written."""
        super().__init__()
        names = [spec.uri, spec.sha256 or ""]
        scheme = spec.uri.partition("://")[0].lower()
        endpoint = {"hf": spec.hf_endpoint, "s3": spec.s3_endpoint, "oci": spec.oci_endpoint}
        names += [endpoint.get(scheme, "")] if endpoint.get(scheme) else []
        # A source that names no file means another one for another role.
        names += [spec.role] if spec.role in {"adapter", "projector"} else []
        self.key = hashlib.sha256("\n".join(names).encode()).hexdigest()

    def entry(self) -> Entry | None:
        """The source's entry if it was fetched and its parts are as they were left."""
        entry = read_entry(self._index)
        if entry is None:
            return None
        try:
            paths = self.blob_paths(entry.digest, len(entry.part_digests))
            is_same = entry.marks == _marks(paths)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # Somebody else's file: it only looks older than it is.
            os.utime(self._index)  # When it was last asked for: ``prune`` looks at it.
        return entry if is_same else None

    def record(self, digest: str, part_digests: Sequence[str]) -> None:
        """Index the source; its parts are in place."""
        with disk_errors(self.root):
            marks = _marks(self.blob_paths(digest, len(part_digests)))
            entry = Entry(digest=digest, part_digests=tuple(part_digests), marks=marks)
            write_durably(self._index, entry.model_dump_json().encode())

    def commit(self, parts: Sequence[Unfinished], digest: str) -> None:
        """Turn finished downloads into the blob, durably and at once."""
        blobs = self.root / "blobs"
        with disk_errors(self.root):
            for part, blob in zip(parts, self.blob_paths(digest, len(parts)), strict=True):
                with contextlib.suppress(FileNotFoundError):
                    # The same content by another source: what the index says of it stays true.
                    os.utime(part.path, ns=(time.time_ns(), blob.stat().st_mtime_ns))
                with part.path.open("rb") as file:
                    os.fsync(file.fileno())
                part.path.chmod(0o644)
            if len(parts) == 1:
                parts[0].path.replace(blobs / f"{digest}.gguf")
            else:
                folder = parts[0].path.parent
                folder.chmod(0o755)
                sync_folder(folder)
                # A folder that is not what its name says: no entry vouched for it.
                shutil.rmtree(blobs / digest, ignore_errors=True)
                folder.replace(blobs / digest)
            sync_folder(blobs)
            for part in parts:
                part.forget_note()

    def discard(self, parts: Sequence[Unfinished]) -> None:
        """Forget unfinished downloads."""
        for part in parts:
            part.discard()
        if len(parts) > 1:
            with contextlib.suppress(OSError):
                parts[0].path.parent.rmdir()

    def check_room(self, more_bytes: int) -> None:
        """Raise DiskFull now rather than after hours of download."""
        free = shutil.disk_usage(self.root).free - _KEPT_FREE
        if more_bytes > free:
            raise FetchError(
                "DiskFull",
                f"the model cache needs {more_bytes} bytes more and has {max(free, 0)} free; "
                "enlarge the pool's modelCache or delete unused models",
                permanent=False,
            )

    @property
    def _index(self) -> Path:
        return self.root / "sources" / f"{self.key}.json"


def read_entry(path: Path) -> Entry | None:
    """What an index file says; ``None`` for a missing, broken or foreign one."""
    try:
        with path.open("rb") as file:
            return Entry.model_validate_json(file.read(_MAX_ENTRY_BYTES))
    except (OSError, ValidationError):
        return None


def content_key(digest: str) -> str:
    """Names the lock and the unfinished download of a content known beforehand.

    Sources that lead to the same content share them, so that it is downloaded once.
    """
    return hashlib.sha256(f"content\n{digest}".encode()).hexdigest()


def _marks(paths: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    stats = [path.stat() for path in paths]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
