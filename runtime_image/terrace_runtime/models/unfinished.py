"""One unfinished download: its bytes so far, and what a resumed request must match.

Owns: the partial file and the note beside it. Does not own: where they lie (``cache``) or the
requests (``download``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from terrace_runtime.models.disk import disk_errors, write_durably

if TYPE_CHECKING:
    from pathlib import Path


class Note(BaseModel):
    """What is known of the file that is being downloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validator: str = ""
    """Strong ETag or Last-Modified date; empty: the server gave none."""
    total_bytes: int = 0
    """0: unknown."""


@dataclass(frozen=True)
class Unfinished:
    """Where one download lies."""

    path: Path
    note_path: Path

    @property
    def size(self) -> int:
        """Bytes that are there."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def note(self) -> Note:
        """What is known of it; a broken note says nothing."""
        try:
            return Note.model_validate_json(self.note_path.read_bytes())
        except (OSError, ValidationError):
            return Note()

    def write_note(self, note: Note) -> None:
        """Remember what a resumed request must match."""
        with disk_errors(self.note_path.parent):
            write_durably(self.note_path, note.model_dump_json().encode())

    def forget_note(self) -> None:
        """The bytes are elsewhere now."""
        self.note_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget the download."""
        self.path.unlink(missing_ok=True)
        self.forget_note()
