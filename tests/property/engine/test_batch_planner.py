"""What a step may contain, whatever the sequences are."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from support.engine_builders import text_request
from terrace_runtime.engine.batch_planner import (
    MAX_GAP,
    BatchPlan,
    Budget,
    free_slots,
    plan_batch,
)
from terrace_runtime.engine.detokenizer import PieceTable
from terrace_runtime.engine.sequence import Sequence
from terrace_runtime.engine.waiting import TenantShares

TABLE = PieceTable([b"x"])


def sequence(slot: int, length: int, computed: int, *, order: int = 0, **changes: str) -> Sequence:
    one = Sequence(text_request(f"s{slot}", **changes), [0] * length, 10, TABLE)
    one.slot, one.num_computed, one.order = slot, computed, order
    return one


@st.composite
def running_sequences(draw: st.DrawFn) -> list[Sequence]:
    slots = draw(st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=20))
    found = []
    for order, slot in enumerate(sorted(slots)):
        length = draw(st.integers(1, 200))
        computed = draw(st.sampled_from([0, length - 1, length // 2]))
        found.append(
            sequence(slot, length, computed, order=order, tenant=draw(st.sampled_from("ab")))
        )
    return found


BUDGETS = st.builds(Budget, st.integers(32, 128), st.integers(16, 200), fill_holes=st.booleans())


def plan(running: list[Sequence], budget: Budget, turn: int = 0) -> BatchPlan:
    return plan_batch(running, budget, TenantShares(), now=0, turn=turn)


@given(running_sequences(), BUDGETS, st.integers(0, 9))
def test_a_plan_keeps_its_budget_and_names_each_slot_once(
    running: list[Sequence], budget: Budget, turn: int
) -> None:
    found = plan(running, budget, turn)
    slots = [item.slot for item in found.work]
    assert slots == sorted(set(slots))
    assert found.num_tokens == sum(item.num_tokens for item in found.work)
    assert 0 < found.num_tokens + len(found.fillers) <= budget.batch_tokens
    assert all(1 <= item.num_tokens <= item.sequence.num_pending for item in found.work)
    if any(item.sequence.num_pending == 1 for item in found.work):
        assert found.num_prompt_tokens <= budget.prefill_tokens


@given(running_sequences(), BUDGETS)
def test_whoever_decodes_goes_first(running: list[Sequence], budget: Budget) -> None:
    decoding = {one.id for one in running if one.num_pending == 1}
    planned = {item.sequence.id for item in plan(running, budget).work}
    assert decoding <= planned


@given(running_sequences(), BUDGETS, st.integers(0, 9))
def test_where_they_do_not_mix_prompts_and_decodes_take_turns(
    running: list[Sequence], budget: Budget, turn: int
) -> None:
    apart = replace(budget, mixes=False)
    pair = plan(running, apart, turn), plan(running, apart, turn + 1)
    decoding = {one.id for one in running if one.num_pending == 1}
    reading = {one.id for one in running} - decoding
    for found in pair:
        planned = {item.sequence.id for item in found.work}
        assert planned <= decoding or planned <= reading
    both = {item.sequence.id for found in pair for item in found.work}
    assert decoding <= both
    assert not reading or both & reading


@given(running_sequences(), BUDGETS)
def test_fillers_close_whole_gaps_of_free_slots_and_are_never_more_than_the_work(
    running: list[Sequence], budget: Budget
) -> None:
    found = plan(running, budget)
    fillers = set(found.fillers)
    assert not {one.slot for one in running} & fillers
    assert len(fillers) == len(found.fillers) <= len(found.work)
    for before, after in pairwise(found.work):
        gap = set(range(before.slot + 1, after.slot))
        assert gap & fillers in (set(), gap)
        assert len(gap & fillers) <= MAX_GAP


def group_of_four(rows: int) -> int:
    return -(-rows // 4) * 4


@given(running_sequences(), BUDGETS, st.integers(0, 45), st.sets(st.integers(0, 45), max_size=5))
def test_padding_makes_up_whole_groups_of_free_slots_behind_decodes_alone(
    running: list[Sequence], budget: Budget, slots: int, occupied: set[int]
) -> None:
    budget = replace(budget, slots=slots)
    plain, found = (
        plan_batch(
            running, budget, TenantShares(), now=0, turn=0, occupied=occupied, quickest=quickest
        )
        for quickest in (int, group_of_four)
    )
    padding = found.fillers[len(plain.fillers) :]
    assert found.work == plain.work
    assert found.fillers[: len(plain.fillers)] == plain.fillers
    assert found.num_tokens + len(found.fillers) <= budget.batch_tokens
    if padding:
        last = found.work[-1].slot
        assert padding == list(range(last + 1, last + 1 + len(padding)))
        assert padding[-1] < slots
        assert not set(padding) & (occupied | {one.slot for one in running})
        assert found.num_prompt_tokens == found.num_drafted == 0
        assert found.filler_tokens == 1
        assert padding[0] > 1, "a step of one row reads all weights once whatever is added"
        assert (found.num_decodes + len(found.fillers)) % 4 == 0


@given(st.integers(2, 20), st.data())
def test_single_holes_between_decoding_sequences_leave_no_gap(
    count: int, data: st.DataObject
) -> None:
    slots = [0]
    for _ in range(count - 1):
        slots.append(slots[-1] + data.draw(st.integers(1, 2)))
    running = [sequence(slot, 5, 4, order=slot) for slot in slots]
    found = plan(running, Budget(64, 16))
    assert sorted([*slots, *found.fillers]) == list(range(slots[-1] + 1))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(1, 16))
def test_with_arrivals_and_departures_slots_are_unique_and_the_lowest_free_one_is_taken(
    moves: list[int], parallel: int
) -> None:
    running: list[Sequence] = []
    for order, move in enumerate(moves):
        if move and running:
            running.pop(order % len(running))
        free = free_slots(running, parallel)
        assert len(free) == parallel - len(running)
        if free:
            slot = free[0]
            assert slot not in {one.slot for one in running}
            assert {one.slot for one in running} >= set(range(slot))
            running.append(sequence(slot, 1, 0, order=order))


@given(st.integers(33, 100), st.integers(32, 64))
def test_more_sequences_than_the_budget_take_turns(count: int, batch_tokens: int) -> None:
    running = [sequence(slot, 5, 4, order=slot) for slot in range(count)]
    budget = Budget(batch_tokens, 16)
    served = [0] * count
    rounds = 2 * count
    for turn in range(rounds):
        for item in plan(running, budget, turn).work:
            served[item.slot] += 1
    assert min(served) > 0
    assert max(served) - min(served) <= max(served) // 2 + 1


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_prompts_of_the_tenant_served_least_come_first(served_a: int, served_b: int) -> None:
    shares = TenantShares()
    shares.enter("a")
    shares.enter("b")
    shares.charge("a", served_a)
    shares.charge("b", served_b)
    running = [sequence(0, 100, 0, order=0, tenant="a"), sequence(1, 100, 0, order=1, tenant="b")]
    found = plan_batch(running, Budget(64, 64), shares, now=0, turn=0)
    assert found.work[0].sequence.tenant == ("b" if served_b < served_a else "a")
    assert found.num_tokens == 64
