"""Who serves a contested name: the older model wins.

Owns: the order among models that ask for one served name, cluster-wide, since one gateway serves
all. Does not own: routing. Pure. Next: ``status.py`` writes servedNames and NameConflict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.controller.kinds import Manifest, is_deleting, key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.api.names import Key


@dataclass(frozen=True, slots=True)
class Claims:
    """What one model got of the names it asked for."""

    won: tuple[str, ...]
    lost: tuple[tuple[str, Key], ...] = ()
    """Names that another model serves, and which one."""


def settle_claims(
    model: Manifest, wanted: tuple[str, ...], rivals: Mapping[str, list[Manifest]]
) -> Claims:
    """``rivals``: for each name all models that ask for it, this one included or not."""
    won, lost = [], []
    mine = seniority(model)
    for name in wanted:
        others = [
            rival
            for rival in rivals.get(name, ())
            if key_of(rival) != key_of(model) and not is_deleting(rival)
        ]
        first = min(others, key=seniority, default=None)
        if first is None or mine < seniority(first):
            won.append(name)
        else:
            lost.append((name, key_of(first)))
    return Claims(tuple(won), tuple(lost))


def seniority(model: Manifest) -> tuple[str, Key]:
    """Smaller is older; equal times go by namespace and name."""
    return str(model["metadata"].get("creationTimestamp", "")), key_of(model)
