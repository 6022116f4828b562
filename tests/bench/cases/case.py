"""What a case of the table is: the ids of its lines and how they are measured.

Owns: the type. Does not own: any case; the files beside it do. Next: ``engine.py`` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.comparison import Options
    from bench.verdict import Line


@dataclass(frozen=True)
class Case:
    """One measurement that gives one or more lines."""

    ids: tuple[str, ...]
    """Of the lines, all of which are printed, whatever happens."""
    run: Callable[[Options], Iterable[Line]]
    is_in_quick: bool = True
    """False: another case shows the same, and a glance does without this one."""
