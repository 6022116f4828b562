"""What one flavor has for one replica, or why it has nothing, as values.

Owns: Room and NoPlacement. Does not own: finding out (``rooms.py``). Pure. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.api.conditions import Reason
    from terrace.api.pool import Flavor
    from terrace.planner.devices import DeviceRoom


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """Nothing fits: a condition's reason and message.

    ``missing_bytes``: by how much the nearest flavor is too small; 0 when memory is not the reason.
    ``missing_devices``: how many more devices one node would have to have free; 0 likewise.
    """

    reason: Reason
    message: str
    missing_bytes: int = 0
    missing_devices: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What one flavor has for one replica, on nodes of one class."""

    flavor: Flavor
    memory_bytes: int
    memory_words: str
    cpu_millis: int
    threads: int
    cpu_words: str
    device: DeviceRoom | None = None
    """None: the flavor has no devices."""
