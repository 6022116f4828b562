"""Small files of /proc and /sys: bounded reads that never raise.

Owns: reading words and numbers and lists of CPUs. Does not own: which files. Next: ``cgroups.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES: Final = 256 * 1024
_MAX_CPU: Final = 8192


def text(path: Path) -> str:
    """The file's text, stripped; empty where it cannot be read."""
    try:
        with path.open(errors="replace") as file:
            return file.read(_MAX_BYTES).strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """A file with one whole number; None for ``max``, other words and no file."""
    return as_number(text(path))


def as_number(word: str) -> int | None:
    """None for anything but digits with or without a sign."""
    try:
        return int(word)
    except ValueError:
        return None


def table(path: Path) -> dict[str, int]:
    """Rows of a name and a number."""
    rows = (row.split() for row in text(path).splitlines())
    found = ((row[0].rstrip(":"), as_number(row[1])) for row in rows if len(row) > 1)
    return {name: value for name, value in found if value is not None}


def number_list(words: str) -> frozenset[int]:
    """``0-3,8`` as a set; what is no such list, or beyond any machine, is left out."""
    found: set[int] = set()
    for part in words.replace("\n", ",").split(","):
        first, dash, last = part.strip().partition("-")
        low, high = as_number(first), as_number(last if dash else first)
        if low is not None and high is not None and 0 <= low <= high < _MAX_CPU:
            found.update(range(low, high + 1))
    return frozenset(found)


def shown_list(numbers: frozenset[int]) -> str:
    """The same the other way round: ``0-3,8``."""
    runs: list[tuple[int, int]] = []
    for each in sorted(numbers):
        if runs and runs[-1][1] == each - 1:
            runs[-1] = (runs[-1][0], each)
        else:
            runs.append((each, each))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
