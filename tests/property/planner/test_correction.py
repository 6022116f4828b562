"""Corrections are monotone, bounded and idempotent, whatever was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from support import planning
from terrace.planner.correction import (
    LEAST_GUESS_BYTES,
    STEP_BYTES,
    Measured,
    after_kill,
    applied,
    joined,
    learned,
    measured,
)
from terrace.planner.inputs import Cluster, Correction, ModelInputs
from terrace.planner.placement import Placement, place
from terrace_runtime.contract import MemoryReport

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan

GIB = 1 << 30
SIZES = st.integers(0, 1 << 44)
CORRECTIONS = st.builds(Correction, SIZES, SIZES)
MEASURED = st.builds(Measured, SIZES, SIZES, SIZES, SIZES)


def plan_with(correction: Correction, attempt: int = 0) -> OffloadPlan:
    model = ModelInputs(
        planning.demo_facts(), planning.model(), correction=correction, attempt=attempt
    )
    placed = place(model, planning.pool(), Cluster((planning.node(memory_bytes=1 << 50),)))
    assert isinstance(placed, Placement)
    return placed.plan


@given(MEASURED)
def test_a_correction_is_what_was_missing_in_whole_steps(one: Measured) -> None:
    found = learned(one)
    for correction, planned, taken in (
        (found.host_bytes, one.planned_host_bytes, one.host_bytes),
        (found.device_bytes, one.planned_device_bytes, one.device_bytes),
    ):
        missing = max(0, taken - planned)
        assert missing <= correction < missing + STEP_BYTES
        assert correction % STEP_BYTES == 0


@given(MEASURED, SIZES)
def test_who_took_more_corrects_more(one: Measured, more: int) -> None:
    other = Measured(one.planned_host_bytes, one.host_bytes + more)
    assert learned(other).host_bytes >= learned(one).host_bytes


@given(st.lists(CORRECTIONS, max_size=4))
def test_joining_satisfies_all_in_any_order_and_number(several: list[Correction]) -> None:
    found = joined(several)
    assert found == joined([*reversed(several), *several, found])
    assert all(
        found.host_bytes >= each.host_bytes and found.device_bytes >= each.device_bytes
        for each in several
    )


@given(st.integers(0, 64 * GIB), st.integers(1, 64 * GIB))
def test_a_corrected_plan_learns_the_same_from_the_same_replica(before: int, peak: int) -> None:
    report = MemoryReport(anonymous_peak_bytes=peak)
    first = measured(plan_with(Correction(before)), report)
    assert first is not None
    again = measured(plan_with(learned(first)), report)
    assert again == first
    corrected = plan_with(learned(first))
    assert corrected.anonymous_bytes >= peak
    assert corrected.memory_limit_bytes > peak


@given(st.integers(0, 64 * GIB))
def test_a_guess_is_more_than_before_and_at_most_as_much_again(before: int) -> None:
    plan = plan_with(Correction(before))
    found = after_kill(plan, "host")
    more = found.host_bytes - applied(plan).host_bytes
    assert 0 < more < max(LEAST_GUESS_BYTES, plan.memory_limit_bytes) + STEP_BYTES
    again = plan_with(found, attempt=1)
    assert again.memory_limit_bytes > plan.memory_limit_bytes
    assert again.attempt == 1
    assert again.digest != plan.digest
