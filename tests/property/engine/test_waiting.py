"""The waiting queue loses nobody and starves nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from support.engine_builders import text_request
from terrace_runtime.engine.detokenizer import PieceTable
from terrace_runtime.engine.sequence import Sequence
from terrace_runtime.engine.waiting import AGEING_S, TenantShares, WaitingQueue

TABLE = PieceTable([b"x"])
KINDS = st.tuples(st.sampled_from("abc"), st.integers(0, 1))


def sequence(order: int, tenant: str, priority: int, arrival: float = 0) -> Sequence:
    one = Sequence(text_request(f"s{order}", tenant=tenant, priority=priority), [0], 1, TABLE)
    one.order, one.arrival = order, arrival
    return one


@given(st.lists(KINDS, max_size=30), st.integers(0, 29))
def test_everybody_queued_and_not_removed_is_popped_exactly_once(
    kinds: list[tuple[str, int]], removed: int
) -> None:
    queue = WaitingQueue(TenantShares())
    everyone = [sequence(order, *kind) for order, kind in enumerate(kinds)]
    for one in everyone:
        queue.push(one)
    if removed < len(everyone):
        queue.remove(everyone.pop(removed))
    popped = []
    while (found := queue.pop(0)) is not None:
        popped.append(found.id)
    assert sorted(popped) == sorted(one.id for one in everyone)
    assert len(queue) == 0


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(0, 20), st.integers(0, 11))
def test_those_that_rest_come_back_when_they_are_due_in_the_order_of_need(
    rests: list[int], now: int, removed: int
) -> None:
    queue = WaitingQueue(TenantShares())
    queue.push(sequence(99, "", 0))
    everyone = [sequence(order, "", 0) for order in range(len(rests))]
    for one, rests_until in zip(everyone, rests, strict=True):
        one.rests_until = rests_until
        queue.put_back(one)
    if removed < len(everyone):
        queue.remove(everyone.pop(removed))
    assert len(queue) == 1 + len(everyone)
    due = sorted(
        (one for one in everyone if one.rests_until <= now), key=lambda one: one.rests_until
    )
    assert queue.wake(now) == bool(due)
    popped = []
    while (found := queue.pop(now)) is not None:
        popped.append(found)
    assert popped == [*due, popped[-1]]
    assert popped[-1].order == 99, "whoever is due goes before those that have not begun"
    left = sorted((one for one in everyone if one not in due), key=lambda one: one.rests_until)
    for one in left:
        assert queue.wake(), "a free slot is for the one whose reader will need it next"
        assert queue.pop(now) is one
    assert not queue.wake()
    assert len(queue) == 0


@given(st.lists(KINDS, max_size=30))
def test_one_tenants_requests_of_one_priority_keep_their_order(
    kinds: list[tuple[str, int]],
) -> None:
    queue = WaitingQueue(TenantShares())
    for order, kind in enumerate(kinds):
        queue.push(sequence(order, *kind))
    seen: dict[tuple[str, int], int] = {}
    while (one := queue.pop(0)) is not None:
        assert seen.get((one.tenant, one.priority), -1) < one.order
        seen[one.tenant, one.priority] = one.order


@given(st.integers(1, 40))
def test_a_batch_request_runs_although_interactive_ones_never_stop_coming(rate: int) -> None:
    queue = WaitingQueue(TenantShares())
    queue.push(sequence(0, "a", priority=1))
    now, order = 0.0, 0
    while True:
        for _ in range(2):
            order += 1
            queue.push(sequence(order, "a", priority=0, arrival=now))
        popped = queue.pop(now)
        assert popped is not None
        if popped.order == 0:
            break
        now += rate
        assert now <= 2 * AGEING_S + rate


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 50)), min_size=1, max_size=40))
def test_two_tenants_that_always_wait_are_served_alike(costs: list[tuple[str, int]]) -> None:
    shares = TenantShares()
    queue = WaitingQueue(shares)
    order = 0
    for tenant in "ab":
        shares.enter(tenant)
        queue.push(sequence(order, tenant, 0))
        order += 1
    for _, cost in costs:
        popped = queue.pop(0)
        assert popped is not None
        shares.charge(popped.tenant, cost)
        order += 1
        queue.push(sequence(order, popped.tenant, 0))
    assert abs(shares.served("a") - shares.served("b")) <= 50


def test_a_tenant_that_comes_back_has_saved_nothing_up() -> None:
    shares = TenantShares()
    shares.enter("busy")
    shares.charge("busy", 1000)
    shares.enter("new")
    assert shares.served("new") == 1000


def test_a_tenant_without_work_is_forgotten() -> None:
    shares = TenantShares()
    shares.enter("a")
    shares.leave("a")
    assert shares._served == {}
