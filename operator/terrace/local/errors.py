"""What can go wrong with a local cluster, as exceptions whose text is written for its user.

Owns: the exception types of ``terrace.local``. Does not own: how they are shown (terrace.cli).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_TAIL_LINES = 12
_TAIL_BYTES = 8192


class LocalClusterError(Exception):
    """A local cluster could not do what was asked; the text says why and what to do."""


class ComponentError(LocalClusterError):
    """A process of the cluster died or never became ready; carries its log's path and end."""

    def __init__(self, component: str, what: str, log: Path) -> None:
        self.component = component
        self.log = log
        tail = log_tail(log)
        shown = f"; its last lines:\n{tail}" if tail else " (empty)"
        super().__init__(f"{component} {what}. Log: {log}{shown}")


class CommandError(LocalClusterError):
    """A kubectl or helm command failed; ``stderr`` holds what it said."""

    def __init__(self, argv: list[str], returncode: int, stderr: str) -> None:
        self.returncode = returncode
        self.stderr = stderr
        super().__init__(f"{' '.join(argv)} failed with exit code {returncode}: {stderr.strip()}")


def log_tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, at most 8 KiB of it; empty when there is no such file."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
