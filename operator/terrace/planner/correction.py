"""What replicas took beyond their plans, as corrections for the plans to come.

Owns: the difference between a plan and a replica's report, the guess where a kill left no report,
and which correction holds in which room. Does not own: where measurements are kept
(``controller/corrections.py``) or the sums that a correction goes into (``footprint.py``,
``split.py``). Pure. Corrections are never negative: what a replica took so far is no bound of what
it will take, so a measurement below the plan frees nothing. They are whole steps, so that a page
more is no other plan. Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from terrace.planner.inputs import NO_CORRECTION, Correction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace.planner.devices import DeviceRoom
    from terrace.planner.plan import DevicePlan, OffloadPlan
    from terrace_runtime.contract import MemoryReport

MIB = 1 << 20
STEP_BYTES = 16 * MIB
"""Corrections are whole steps."""
MAX_ATTEMPT = 1
"""A plan that proved too small is made anew so often."""
HOST_GUESS_SHARE = 4
"""After a kill without numbers: a quarter of the limit more."""
DEVICE_GUESS_SHARE = 8
"""After a device was too small: an eighth of what was planned on it more."""
LEAST_GUESS_BYTES = 256 * MIB
HOST_CLASS = "cpu"
"""Device class of plans without devices."""

Place = Literal["host", "device"]
"""Where the bytes did not suffice."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one replica took, and what its plan had counted before any correction."""

    planned_host_bytes: int
    host_bytes: int
    """Highest anonymous and shared memory; 0: not told."""
    planned_device_bytes: int = 0
    device_bytes: int = 0
    """On the device that was furthest above its plan; 0: not told."""


def device_class(device: DevicePlan | DeviceRoom | None) -> str:
    """Devices with one name behave alike: the accelerator's row and the product."""
    if device is None:
        return HOST_CLASS
    return f"{device.accelerator}/{device.product}" if device.product else device.accelerator


def measured(plan: OffloadPlan, memory: MemoryReport) -> Measured | None:
    """What a replica with ``plan`` reports; None where the plan or the report lacks the numbers."""
    if not plan.anonymous_bytes or not memory.anonymous_peak_bytes:
        return None
    host = plan.anonymous_bytes - plan.corrected_host_bytes, memory.anonymous_peak_bytes
    # The host comes last.
    devices = [each for each in memory.devices[:-1] if each.weights_bytes]
    if plan.device is None or not devices:
        return Measured(*host)
    count = plan.device.count
    on_devices = plan.device.weights_bytes + plan.device.kv_bytes + plan.device.compute_bytes
    # How a plan lies on several devices only llama.cpp knows to the layer: what all of them took
    # beyond it counts for each.
    taken = sum(each.weights_bytes + each.kv_bytes + each.compute_bytes for each in devices)
    return Measured(*host, -(-on_devices // count), -(-taken // count))


def learned(one: Measured) -> Correction:
    """What plans of the same file, build and device class must add."""
    host = one.host_bytes - one.planned_host_bytes if one.host_bytes else 0
    device = one.device_bytes - one.planned_device_bytes if one.device_bytes else 0
    return Correction(_steps(host), _steps(device))


def after_kill(plan: OffloadPlan, place: Place) -> Correction:
    """What the next plan must add when replicas with ``plan`` got too little in ``place``.

    A guess, for nobody measured how much more they would have taken; at most as much again as was
    planned, and not under 256 MiB.
    """
    host, device = plan.corrected_host_bytes, plan.corrected_device_bytes
    if place == "host":
        host += max(LEAST_GUESS_BYTES, plan.memory_limit_bytes // HOST_GUESS_SHARE)
    elif plan.device is not None:
        on_each = plan.device.memory_bytes - plan.device.margin_bytes
        device += max(LEAST_GUESS_BYTES, on_each // DEVICE_GUESS_SHARE)
    return Correction(_steps(host), _steps(device))


def applied(plan: OffloadPlan) -> Correction:
    """The correction that is in ``plan``."""
    return Correction(plan.corrected_host_bytes, plan.corrected_device_bytes)


def joined(corrections: Iterable[Correction]) -> Correction:
    """What satisfies all of them."""
    host = device = 0
    for each in corrections:
        host, device = max(host, each.host_bytes), max(device, each.device_bytes)
    return Correction(host, device) if host or device else NO_CORRECTION


def _steps(count: int) -> int:
    """Whole steps that hold ``count`` bytes; 0 for less than nothing."""
    return max(0, -(-count // STEP_BYTES)) * STEP_BYTES
