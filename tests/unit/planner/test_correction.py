"""What replicas took beyond their plans becomes a correction of the plans to come."""

from __future__ import annotations

from typing import Any

from support import planning
from terrace.planner.correction import (
    HOST_CLASS,
    LEAST_GUESS_BYTES,
    Measured,
    after_kill,
    device_class,
    learned,
    measured,
)
from terrace.planner.inputs import NO_CORRECTION, Cluster, Correction, ModelInputs
from terrace.planner.placement import Placement, place
from terrace.planner.plan import DevicePlan, OffloadPlan
from terrace_runtime.contract import DeviceMemory, MemoryReport

MIB, GIB = 1 << 20, 1 << 30


def plan(**inputs: Any) -> OffloadPlan:
    """Of the demo model on a CPU flavor."""
    model = ModelInputs(planning.demo_facts(), planning.model(), **inputs)
    placed = place(model, planning.pool(), Cluster((planning.node(),)))
    assert isinstance(placed, Placement)
    return placed.plan


def on_devices(count: int = 1, **changes: Any) -> OffloadPlan:
    device = DevicePlan(
        accelerator="nvidia",
        backend="cuda",
        product="A10",
        resource="nvidia.com/gpu",
        count=count,
        memory_bytes=24 * GIB,
        device_layers=6,
        weights_bytes=4 * GIB,
        kv_bytes=GIB,
        compute_bytes=GIB,
        **changes,
    )
    return plan().model_copy(update={"device": device})


def report(host: int, *devices: int) -> MemoryReport:
    """Peak of host memory, and bytes on each device; the host's own row comes last."""
    rows = [DeviceMemory(name=f"CUDA{i}", weights_bytes=each) for i, each in enumerate(devices)]
    return MemoryReport(
        anonymous_peak_bytes=host, devices=(*rows, DeviceMemory(name="CPU", weights_bytes=GIB))
    )


def test_a_correction_of_one_class_of_devices_holds_in_its_rooms_alone() -> None:
    wanted = Correction(512 * MIB)
    assert plan(corrections={"nvidia/A10": wanted}).corrected_host_bytes == 0
    corrected = plan(corrections={HOST_CLASS: wanted})
    assert corrected.corrected_host_bytes == 512 * MIB
    assert corrected.anonymous_bytes == plan().anonymous_bytes + 512 * MIB
    assert corrected.memory_limit_bytes >= plan().memory_limit_bytes + 512 * MIB
    assert any(reason.startswith("correction:") for reason in corrected.reasons)


def test_notes_on_a_correction_are_no_part_of_the_digest() -> None:
    one = plan()
    noted = one.model_copy(update={"anonymous_bytes": 0, "corrected_host_bytes": 7})
    assert noted.digest == one.digest


def test_a_plan_of_an_older_operator_or_a_report_without_numbers_teaches_nothing() -> None:
    one = plan()
    assert measured(one.model_copy(update={"anonymous_bytes": 0}), report(GIB)) is None
    assert measured(one, MemoryReport()) is None


def test_what_devices_took_is_compared_by_the_device() -> None:
    one = on_devices(count=2)
    found = measured(one, report(one.anonymous_bytes, 4 * GIB, 3 * GIB))
    assert found is not None
    assert (found.planned_device_bytes, found.device_bytes) == (3 * GIB, 3 * GIB + GIB // 2)
    assert learned(found) == Correction(0, GIB // 2)


def test_a_replica_that_took_less_frees_nothing() -> None:
    assert learned(Measured(2 * GIB, GIB, 2 * GIB, GIB)) == NO_CORRECTION


def test_a_kill_without_numbers_is_answered_where_it_happened() -> None:
    one = on_devices()
    assert after_kill(one, "host") == Correction(LEAST_GUESS_BYTES, 0)
    assert after_kill(one, "device") == Correction(0, 3 * GIB)
    assert after_kill(plan(), "device") == NO_CORRECTION


def test_a_device_class_is_the_accelerator_and_its_product() -> None:
    assert device_class(None) == HOST_CLASS
    assert device_class(on_devices().device) == "nvidia/A10"
