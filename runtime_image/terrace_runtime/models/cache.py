"""The model cache of a pool: blobs by digest, an index by source, locks, unfinished downloads.

Owns: the layout under MODEL_CACHE_DIR, atomic commits, room on the disk. Does not own: where bytes
come from. Layout: ``blobs/<sha256>.gguf``, ``sources/<key>.json``, ``partial/<key>.part`` and
``.json``, ``locks/<key>``; key = sha256 of the source. Next: replicas mount it read-only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from terrace_runtime.contract import MODEL_CACHE_DIR, Digest, ModelFacts, pod_path
from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from terrace_runtime.contract import FetchSpec

_KEPT_FREE = 16 * 2**20
"""Bytes left free, so that the index can still be written."""


class Entry(BaseModel):
    """What the index knows of a fetched source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri_digest: Digest
    mtime_ns: int
    facts: ModelFacts


class Partial(BaseModel):
    """Beside an unfinished download: what a resumed request must match."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validator: str = ""
    """Strong ETag or Last-Modified date; empty: the server gave none."""
    total_bytes: int = 0
    """0: unknown."""


class ModelCache:
    """One source's view of the cache folder."""

    def __init__(self, spec: FetchSpec) -> None:
        """Raises FetchError when the cache cannot be written."""
        self._root = pod_path(MODEL_CACHE_DIR)
        self._key = hashlib.sha256(f"{spec.uri}\n{spec.sha256 or ''}".encode()).hexdigest()
        with disk_errors(self._root):
            for folder in ("blobs", "sources", "partial", "locks"):
                (self._root / folder).mkdir(parents=True, exist_ok=True)

    @property
    def partial(self) -> Path:
        """The unfinished download."""
        return self._root / "partial" / f"{self._key}.part"

    def blob(self, digest: str) -> Path:
        """Where the file with this digest is or will be."""
        return self._root / "blobs" / f"{digest}.gguf"

    @staticmethod
    def container_path(digest: str) -> str:
        """The same as replicas see it."""
        return f"{MODEL_CACHE_DIR}/blobs/{digest}.gguf"

    @contextlib.contextmanager
    def try_lock(self) -> Iterator[bool]:
        """Whether this process may fetch the source; the kernel frees the lock when it dies."""
        with disk_errors(self._root), (self._root / "locks" / self._key).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                yield False
            else:
                yield True

    def entry(self) -> ModelFacts | None:
        """Facts of the source if it was fetched and its blob is as it was left."""
        try:
            entry = Entry.model_validate_json(self._index.read_bytes())
            stat = self.blob(entry.facts.digest).stat()
        except (OSError, ValidationError):
            return None
        is_same = stat.st_size == entry.facts.file_bytes and stat.st_mtime_ns == entry.mtime_ns
        return entry.facts if is_same else None

    def record(self, facts: ModelFacts) -> None:
        """Index the source; its blob is in place."""
        mtime_ns = self.blob(facts.digest).stat().st_mtime_ns
        entry = Entry(uri_digest=self._key, mtime_ns=mtime_ns, facts=facts)
        _write(self._index, entry.model_dump_json().encode())

    def commit(self, digest: str) -> None:
        """Turn the finished partial into the blob, durably."""
        with disk_errors(self._root):
            with self.partial.open("rb") as file:
                os.fsync(file.fileno())
            self.partial.chmod(0o644)
            self.partial.replace(self.blob(digest))
            _sync_folder(self.blob(digest).parent)
            self._note.unlink(missing_ok=True)

    def note(self) -> Partial:
        """What is known of the unfinished download."""
        try:
            return Partial.model_validate_json(self._note.read_bytes())
        except (OSError, ValidationError):
            return Partial()

    def write_note(self, note: Partial) -> None:
        """Remember what a resumed request must match."""
        with disk_errors(self._root):
            _write(self._note, note.model_dump_json().encode())

    def discard_partial(self) -> None:
        """Forget the unfinished download."""
        self.partial.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def check_room(self, more_bytes: int) -> None:
        """Raise DiskFull now rather than after hours of download."""
        free = shutil.disk_usage(self._root).free - _KEPT_FREE
        if more_bytes > free:
            raise FetchError(
                "DiskFull",
                f"the model cache needs {more_bytes} bytes more and has {max(free, 0)} free; "
                "enlarge the pool's modelCache or delete unused models",
                permanent=False,
            )

    @property
    def _index(self) -> Path:
        return self._root / "sources" / f"{self._key}.json"

    @property
    def _note(self) -> Path:
        return self._root / "partial" / f"{self._key}.json"


@contextlib.contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Say full, read-only and broken disks in the words of the contract."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FetchError(
                "DiskFull",
                f"no room left in the model cache ({error.strerror}): enlarge it in the pool",
                permanent=False,
            ) from error
        raise FetchError(
            "DownloadFailed", f"the model cache {root} cannot be written: {error}", permanent=False
        ) from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
