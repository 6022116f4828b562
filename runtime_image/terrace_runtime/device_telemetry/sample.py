"""One look at one device, whoever made it.

Owns: DeviceSample and the port that readers implement. Does not own: reading. Pure.
Next: ``sampler.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ReadError(Exception):
    """A driver that is there did not answer; the message says which call and why."""


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """``None`` where the device or its driver does not tell."""

    id: str
    """The vendor's own: a UUID, or the PCI address."""
    name: str
    vendor: str
    """``nvidia``, ``amd``, ``intel`` or ``huawei``."""
    utilization: float | None = None
    """Share of the last sample period in which kernels ran, 0 to 1."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    throttled_by: tuple[str, ...] | None = None
    """Why clocks are lower than they could be; empty: they are not."""


class DeviceReader(Protocol):
    """One vendor's devices."""

    def read(self) -> tuple[DeviceSample, ...]:
        """All devices that this process can see; raises ReadError. May block on the driver."""
