"""Lines for people: wrapped to the terminal, coloured only there.

Owns: width, wrapping, styles. Does not own: any words. Used by ``plan_table.py`` and
``explain_text.py``.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 100
MIN_WIDTH = 44
_UNIT = re.compile(r"(\d) ((?:[KMGTP]i)?B\b|tokens\b|CPUs?\b|layers\b)")
"""A number stays with its unit."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Line:
    """One line and how it looks on a terminal."""

    text: str = ""
    style: str = ""
    indent: int = 0
    """Columns that its further lines are moved by, where it is too long for one."""
    is_table: bool = False
    """Never wrapped."""


def width_of(console: Console) -> int:
    """Columns to write in; a pipe has none of its own."""
    width = console.width if console.is_terminal else PIPED_WIDTH
    return max(MIN_WIDTH, min(width, PIPED_WIDTH + 20))


def show(console: Console, lines: list[Line], width: int) -> None:
    """Print ``lines``. What a cluster or a file said cannot control the terminal."""
    for line in lines:
        clean = _CONTROL.sub("?", line.text)
        for text in wrapped(clean, width, line.indent) if not line.is_table else [clean]:
            console.print(Text(text, style=line.style), soft_wrap=True)


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """``text`` in lines of at most ``width`` columns; words, such as URLs, stay whole."""
    folded = textwrap.wrap(
        _UNIT.sub("\\1\u00a0\\2", text),
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\u00a0", " ") for line in folded] or [""]
