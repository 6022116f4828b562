"""Nodes and usage for those who have a cache and no reconcile: the command line.

Owns: nothing; ``inventory.py`` does. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.api.names import Key
    from terrace.controller.cache import Cache
    from terrace.planner.inputs import Usage


def used_by_others(cache: Cache, model: Key) -> Usage:
    """What all replicas but the model's own have requested."""
    return cache.inventory.used_by_others(model)
