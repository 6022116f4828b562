from __future__ import annotations

from typing import TYPE_CHECKING

from support.planning import demo_facts, model, node, place, pool
from terrace.planner.placement import Placement
from terrace.planner.sticky import Change, Keep, decide, inputs_digest

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan


def plan(**changes: object) -> OffloadPlan:
    placement = place(demo_facts(), model(), pool(), [node()], {})
    assert isinstance(placement, Placement)
    return placement.plan.model_copy(update=changes)


def test_a_model_without_replicas_gets_the_fresh_plan() -> None:
    assert decide(None, "", plan(), "b") == Change(plan())


def test_the_same_plan_changes_nothing() -> None:
    assert decide(plan(), "a", plan(reasons=("other words",)), "a") == Keep(plan())


def test_a_better_plan_waits_while_the_inputs_are_the_same() -> None:
    better = plan(threads=3)
    assert decide(plan(), "a", better, "a") == Keep(plan(), better)


def test_changed_inputs_bring_the_fresh_plan() -> None:
    assert decide(plan(), "a", plan(threads=3), "b") == Change(plan(threads=3))


def test_a_replica_killed_for_its_memory_gets_the_fresh_plan() -> None:
    smaller = plan(parallel=2)
    assert decide(plan(), "a", smaller, "a", current_fits=False) == Change(smaller)


def test_a_plan_carries_the_digest_of_its_inputs() -> None:
    assert plan().inputs == inputs_digest(demo_facts(), model(), pool(), "cpu")


def test_reasons_are_not_part_of_a_plans_digest() -> None:
    assert plan().digest == plan(reasons=()).digest
    assert plan().digest != plan(threads=5).digest


def test_a_preferred_flavor_in_front_does_not_move_a_running_model() -> None:
    before, after = pool(), pool({"name": "fast"}, {"name": "cpu"})
    fresh = place(demo_facts(), model(), after, [node()], {})
    assert isinstance(fresh, Placement)
    assert fresh.flavor.name == "fast"
    verdict = decide(
        plan(),
        inputs_digest(demo_facts(), model(), before, "cpu"),
        fresh.plan,
        inputs_digest(demo_facts(), model(), after, "cpu"),
    )
    assert verdict == Keep(plan(), fresh.plan)


def test_a_flavor_that_is_gone_moves_its_models() -> None:
    assert inputs_digest(demo_facts(), model(), pool(), "cpu") != inputs_digest(
        demo_facts(), model(), pool({"name": "fast"}), "cpu"
    )


def test_writing_out_a_default_changes_no_input() -> None:
    assert inputs_digest(demo_facts(), model(), pool(), "cpu") == inputs_digest(
        demo_facts(),
        model(context={}, sampling={}, servedNames=[]),
        pool({"name": "cpu", "accelerator": "cpu", "host": {}}, queue={"maxRequests": 64}),
        "cpu",
    )


def test_the_pools_kv_types_do_not_touch_a_model_that_sets_its_own() -> None:
    own = model(offload={"kvTypes": {"key": "q8_0"}})
    assert inputs_digest(demo_facts(), own, pool(), "cpu") == inputs_digest(
        demo_facts(), own, pool(offload={"kvTypes": {"key": "q4_0"}}), "cpu"
    )
