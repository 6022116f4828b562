"""Lines for people: wrapped to the terminal, coloured only there.

Owns: width, wrapping, styles. Does not own: any words. Used by ``plan_table.py`` and
``explain_text.py``.
"""

from __future__ import annotations

import re
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal what is waited for, for as long as it takes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(clean(what))):
        yield


def width_of(console: Console) -> int:
    """Columns to write in; a pipe has none of its own."""
    width = console.width if console.is_terminal else PIPED_WIDTH
    return max(MIN_WIDTH, min(width, PIPED_WIDTH + 20))


def show(console: Console, lines: list[Line], width: int) -> None:
    """Print ``lines``. What a cluster or a file said cannot control the terminal."""
    for line in lines:
        text = clean(line.text)
        for each in wrapped(text, width, line.indent) if not line.is_table else [text]:
            console.print(Text(each, style=line.style), soft_wrap=True)


def clean(text: str) -> str:
    """``text`` without what a terminal would obey."""
    return _CONTROL.sub("?", text)


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
