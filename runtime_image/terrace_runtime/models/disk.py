"""Writing to the cache's disk so that a crash loses nothing that was promised.

Owns: durable small files, locks that die with their process, and what errors of a disk mean.
Does not own: what is written where (``cache``, ``unfinished``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether the lock is ours now; the kernel frees it when this process dies."""
    with disk_errors(path.parent), path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            yield False
        else:
            yield True


def write_durably(path: Path, content: bytes) -> None:
    """All of ``content`` or what was there before, also after a crash."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
