"""Markdown pages of the repository as values: links, anchors, fences and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_FIRST = re.compile(r"(make|kubectl|helm|terrace|docker|curl|python) [a-z-]")
"""A fence without a language holds commands where it begins like this."""
_SHELL = ("console", "sh", "bash", "shell")
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Fence:
    """A block of code."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A line that a reader types, and the output that is shown below it."""

    page: str
    line: int
    text: str
    shown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Path from the root of the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        """The whole page."""
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The page without its blocks of code."""
        return _FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """What can follow a ``#``: headings as GitHub spells them."""
        found: set[str] = set()
        for title in re.findall(r"^#+ (.+?)\s*$", self.prose, re.MULTILINE):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = 0
            while (name := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(name)
        return found

    @property
    def inline_code(self) -> list[str]:
        """Words between backticks."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    @property
    def fences(self) -> list[Fence]:
        """Blocks of code in their order."""
        text = self.text
        return [
            Fence(self.name, text.count("\n", 0, match.start()) + 1, match[2], match[3])
            for match in _FENCE.finditer(text)
        ]

    @property
    def commands(self) -> list[Command]:
        """What is typed in blocks for a shell, with what is shown below each."""
        return [command for fence in self.fences for command in _typed(fence)]


def pages() -> list[Page]:
    """Every page that people read: at the root, under docs/ and beside examples."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return [Page(path) for path in sorted(found)]


def page(name: str) -> Page:
    """The page at that path from the root."""
    return Page(ROOT / name)


def _typed(fence: Fence) -> Iterator[Command]:
    lines = fence.text.splitlines()
    has_prompts = any(line.startswith("$ ") for line in lines)
    if not _is_shell(fence, has_prompts=has_prompts):
        return
    number = 0
    while number < len(lines):
        at, line = number, lines[number]
        number += 1
        if not line.strip() or (has_prompts and not line.startswith("$ ")):
            continue
        while line.endswith("\\") and number < len(lines):
            line = f"{line[:-1]}{lines[number].strip()}"
            number += 1
        shown = []
        while has_prompts and number < len(lines) and not lines[number].startswith("$ "):
            shown.append(lines[number])
            number += 1
        text = line.removeprefix("$ ").strip()
        if not text.startswith("#"):
            yield Command(fence.page, fence.line + 1 + at, text, tuple(filter(str.strip, shown)))


def _is_shell(fence: Fence, *, has_prompts: bool) -> bool:
    if fence.language:
        return fence.language in _SHELL
    return has_prompts or bool(_FIRST.match(fence.text))
