"""The termination message of a container: at most 4,096 bytes, from its file or its log.

Owns: reading what a container left, which is untrusted. Next: ``run.py``.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.pods.spec import Container

MAX_MESSAGE_BYTES = 4096
_MAX_LOG_BYTES = 2048
_MAX_LOG_LINES = 80
_HEAD_WORDS = 3


def termination_message(container: Container, root: Path, log: Path, exit_code: int) -> str:
    """The file's content; or, where policy and exit code ask for it, the end of the log."""
    message = _tail(root / container.message_path.lstrip("/"), MAX_MESSAGE_BYTES)
    if message or exit_code == 0 or not container.message_falls_back_to_logs:
        return message.decode(errors="replace")
    records = _tail(log, _MAX_LOG_BYTES * 2).split(b"\n")
    lines = [record.split(b" ", _HEAD_WORDS)[-1] for record in records if record]
    text = b"\n".join(lines[-_MAX_LOG_LINES:])
    return text[-_MAX_LOG_BYTES:].decode(errors="replace")


def _tail(path: Path, max_bytes: int) -> bytes:
    """The end of a regular file; empty for anything else (a link, a pipe, nothing)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return b""
        file.seek(max(0, status.st_size - max_bytes))
        return file.read(max_bytes)
