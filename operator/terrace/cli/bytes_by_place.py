"""Where the bytes of a plan lie: on devices, in host memory, on disk.

Owns: the sums that the table shows. Does not own: any of the numbers (``planner/plan.py``). Pure.
Next: ``plan_table.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of one replica in one place; ``total_bytes`` is the sum of the parts."""

    name: Literal["device", "host", "disk"]
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    tiers_bytes: int = 0
    other_bytes: int = 0
    """Programs, projector, draft, adapters, what is kept free, and headroom."""

    @property
    def total_bytes(self) -> int:
        """On the host, the memory limit."""
        known = self.weights_bytes + self.kv_bytes + self.compute_bytes
        return known + self.tiers_bytes + self.other_bytes


def places(plan: OffloadPlan) -> tuple[Place, ...]:
    """The places that a replica uses, the fastest first."""
    found = [_device(plan), _host(plan), _disk(plan)]
    return tuple(place for place in found if place.total_bytes or place.name == "host")


def _device(plan: OffloadPlan) -> Place:
    device = plan.device
    if device is None:
        return Place("device")
    return Place(
        "device",
        weights_bytes=device.weights_bytes,
        kv_bytes=device.kv_bytes,
        compute_bytes=device.compute_bytes,
        other_bytes=device.margin_bytes * device.count,
    )


def _host(plan: OffloadPlan) -> Place:
    kv, compute = plan.kv_bytes, plan.compute_bytes
    weights = _host_weights(plan)
    if plan.weights == "paged":
        weights = _resident_pages(plan)
    rest = plan.memory_limit_bytes - weights - kv - compute - plan.tiers_bytes
    return Place("host", weights, kv, compute, plan.tiers_bytes, max(0, rest))


def _resident_pages(plan: OffloadPlan) -> int:
    """Paged weights that stay in memory at least: the part of the request that nothing else is."""
    parts = plan.kv_bytes + plan.compute_bytes + plan.tiers_bytes + plan.base_bytes
    extra = plan.projector_bytes + plan.draft_bytes + plan.adapter_bytes + plan.repacked_bytes
    return max(0, min(_host_weights(plan), plan.memory_request_bytes - parts - extra))


def _host_weights(plan: OffloadPlan) -> int:
    return plan.weights_bytes if plan.device is None else plan.host_weights_bytes


def _disk(plan: OffloadPlan) -> Place:
    weights = 0
    if plan.weights == "paged":
        weights = _host_weights(plan) - _resident_pages(plan)
    return Place("disk", weights_bytes=weights, tiers_bytes=plan.disk_bytes)
