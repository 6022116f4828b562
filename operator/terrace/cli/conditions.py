"""A stored object's conditions and status, read without trusting that they are there.

Owns: Found, and whether the operator has seen the object. Pure. Used by every step of the walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest


@dataclass(frozen=True, slots=True)
class Found:
    """One condition as it is stored; all empty where it is not."""

    status: str = ""
    reason: str = ""
    message: str = ""

    @property
    def is_true(self) -> bool:
        """Whether it holds."""
        return self.status == "True"


def condition(manifest: Manifest, kind: str) -> Found:
    """The condition of that type."""
    for each in (manifest.get("status") or {}).get("conditions") or ():
        if each.get("type") == kind:
            return Found(
                str(each.get("status", "")),
                str(each.get("reason", "")),
                str(each.get("message", "")),
            )
    return Found()


def is_seen(manifest: Manifest) -> bool:
    """Whether the status is about the spec as it is now."""
    generation = manifest["metadata"].get("generation")
    return bool((manifest.get("status") or {}).get("observedGeneration") == generation)
