"""The names of model files in parts. Pure.

Owns: the naming pattern that llama.cpp loads by (``llama_split_path``: PREFIX-00001-of-00003.gguf)
and the bound on parts. Does not own: getting the parts (``resolve``, ``fetch``) or whether their
headers fit (``parts``). Parts are numbered and never name each other, so a hostile set costs one
header per part and no walk in circles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from terrace_runtime.models.errors import FetchError

MAX_PARTS: Final = 512
_NAME: Final = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class SplitName:
    """One part's path: ``number`` of ``count``, from 1."""

    prefix: str
    number: int
    count: int

    def sibling(self, number: int) -> str:
        """The path of another part."""
        return f"{self.prefix}-{number:05d}-of-{self.count:05d}.gguf"


def split_name(path: str) -> SplitName | None:
    """What ``path`` says about parts; ``None`` for a file of its own.

    Raises FetchError for a name that can be no part.
    """
    match = _NAME.fullmatch(path)
    if match is None:
        return None
    name = SplitName(match[1], int(match[2]), int(match[3]))
    if not 1 <= name.number <= name.count:
        raise FetchError("InvalidModel", f"{_last(path)} cannot be part {match[2]} of {match[3]}")
    if name.count > MAX_PARTS:
        raise FetchError(
            "UnsupportedFormat", f"the model has {name.count} parts; the limit is {MAX_PARTS}"
        )
    return name


def part_paths(path: str) -> tuple[str, ...]:
    """Paths of all parts of the file that ``path`` names, itself alone if it is no part."""
    name = split_name(path)
    if name is None or name.count == 1:
        return (path,)
    if name.number != 1:
        raise FetchError(
            "UnsupportedFormat",
            f"{_last(path)} is part {name.number} of {name.count} of a model; "
            f"name its first part, {_last(name.sibling(1))}",
        )
    return tuple(name.sibling(number) for number in range(1, name.count + 1))


def cached_name(number: int, count: int) -> str:
    """Name of a part in the cache, as llama.cpp looks for it beside the first."""
    return SplitName("model", number, count).sibling(number)


def _last(path: str) -> str:
    return path.rpartition("/")[2][-200:]
