"""The disk tier's folder: the only file of the tier that calls the file system.

Owns: the folder (0700), its lock, segment files (0600) and their names. Does not own: what is in
them (``format.py``) and when they go (``segments.py``). All names are resolved against the open
folder and no symbolic link is followed below it. Errors are OSError. Next: ``segments.py``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from terrace_runtime.kv.disk.format import Data

_LOCK_NAME = "lock"
_SEGMENT_NAME = re.compile(r"segment-([0-9a-f]{12})\.kv")
MAX_SERIAL = 2**47
"""No tier writes so many segments: a name beyond it is not ours to trust."""
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""O_NONBLOCK: opening a FIFO in a segment's place must not wait for its writer."""


class FolderInUseError(OSError):
    """Another process has this folder."""


class Volume:
    """One folder of segment files, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder_fd = -1
        self._lock_fd = -1

    @property
    def is_open(self) -> bool:
        """The lock is held."""
        return self._lock_fd >= 0

    def open(self) -> None:
        """Create the folder where it is missing, and lock it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock_fd = _lock(folder_fd, self._folder)
        except OSError:
            os.close(folder_fd)
            raise
        self._folder_fd = folder_fd

    def close(self) -> None:
        """Let another process have the folder."""
        for fd in (self._lock_fd, self._folder_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._folder_fd = -1

    def serials(self) -> tuple[list[int], int]:
        """Serial numbers of the segment files, ascending, and how many names are no files."""
        found: list[int] = []
        num_odd = 0
        with os.scandir(self._folder_fd) as entries:
            for entry in entries:
                match = _SEGMENT_NAME.fullmatch(entry.name)
                if match is None:
                    continue
                serial = int(match[1], 16)
                if entry.is_file(follow_symlinks=False) and serial < MAX_SERIAL:
                    found.append(serial)
                else:
                    num_odd += 1
        return sorted(found), num_odd

    def create(self, serial: int) -> int:
        """A new empty segment file, open for writing."""
        flags = _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL
        return os.open(_name(serial), flags, 0o600, dir_fd=self._folder_fd)

    def open_segment(self, serial: int, *, writable: bool = False) -> int:
        """An existing segment file."""
        access = os.O_RDWR if writable else os.O_RDONLY
        fd = os.open(_name(serial), _FLAGS | access, dir_fd=self._folder_fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", _name(serial))
        return fd

    def remove(self, serial: int) -> None:
        """Give a segment's bytes back at once, even while a reader has it open."""
        # Whatever somebody put in its place, the unlink decides; only files of ours have bytes.
        with contextlib.suppress(OSError):
            fd = self.open_segment(serial, writable=True)
            try:
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(_name(serial), dir_fd=self._folder_fd)

    def size_of(self, serial: int) -> int:
        """Bytes of a segment's file; 0: there is none."""
        try:
            name = _name(serial)
            return os.stat(name, dir_fd=self._folder_fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def space(self) -> tuple[int, int]:
        """Bytes that we may still write to the volume, and its size."""
        facts = os.statvfs(self._folder_fd)
        return facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize

    # A file that is open --------------------------------------------------------------------------

    def size(self, fd: int) -> int:
        """Bytes of an open file."""
        return os.fstat(fd).st_size

    def is_linked(self, fd: int) -> bool:
        """The file still has a name; what is written to one without is lost."""
        try:
            return os.fstat(fd).st_nlink > 0
        except OSError:
            return False

    def write(self, fd: int, buffers: Sequence[Data], offset: int) -> None:
        """All of ``buffers``, in one call unless the file system takes less."""
        left = [memoryview(buffer).cast("B") for buffer in buffers]
        while left:
            count = os.pwritev(fd, left, offset)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
            offset += count
            left = _rest(left, count)

    def read(self, fd: int, buffers: Sequence[Data], offset: int) -> bool:
        """Fill ``buffers``; False: the file ends before."""
        left = [memoryview(buffer).cast("B") for buffer in buffers]
        while left:
            count = os.preadv(fd, left, offset)
            if count == 0:
                return False
            offset += count
            left = _rest(left, count)
        return True

    def will_read(self, fd: int, offset: int, length: int) -> None:
        """Have the kernel read ahead, in large requests."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def truncate(self, fd: int, length: int) -> None:
        """Cut an open file."""
        os.ftruncate(fd, length)

    def settle(self, fd: int) -> None:
        """Bring a whole file to the disk and let the page cache go.

        The host tier holds these blocks already; mapped weights need the memory more.
        """
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _name(serial: int) -> str:
    return f"segment-{serial:012x}.kv"


def _lock(folder_fd: int, folder: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | _FLAGS
    fd = os.open(_LOCK_NAME, flags, 0o600, dir_fd=folder_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        message = "another process uses this folder for its KV blocks"
        raise FolderInUseError(errno.EWOULDBLOCK, message, str(folder)) from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _rest(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of ``buffers`` after their first ``count`` bytes."""
    for at, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[at + 1 :]]
        count -= len(buffer)
    return []
