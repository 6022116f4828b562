"""Which endpoint takes a request."""

from __future__ import annotations

import random
from collections import Counter

from support.gateway import raw_pod
from terrace.gateway.registry import Endpoint, parse_endpoint
from terrace.gateway.routing import Router


def endpoint(name: str) -> Endpoint:
    made = parse_endpoint(raw_pod(name))
    assert made is not None
    return made


A, B, C = endpoint("a"), endpoint("b"), endpoint("c")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def router(clock: Clock | None = None) -> Router:
    return Router(random.Random(7), clock or Clock())


def test_the_endpoint_with_the_fewest_requests_is_taken() -> None:
    routes = router()
    routes.started(A)
    routes.started(A)
    routes.started(B)
    assert routes.pick([A, B]) == B


def test_ties_are_spread_at_random() -> None:
    routes = router()
    taken = Counter(routes.pick([A, B, C]) for _ in range(300))
    assert set(taken) == {A, B, C}
    assert min(taken.values()) > 60


def test_an_endpoint_that_failed_is_skipped_for_a_moment() -> None:
    clock = Clock()
    routes = router(clock)
    routes.failed(A)
    assert {routes.pick([A, B]) for _ in range(20)} == {B}
    clock.now += 2.1
    routes.started(B)
    assert routes.pick([A, B]) == A


def test_an_endpoint_that_failed_is_still_tried_when_there_is_no_other() -> None:
    routes = router()
    routes.failed(A)
    assert routes.pick([A]) == A


def test_none_is_left_when_all_were_tried() -> None:
    assert router().pick([A, B], tried=[A, B]) is None
    assert router().pick([]) is None


def test_finished_requests_leave_no_trace() -> None:
    routes = router()
    for _ in range(3):
        routes.started(A)
    for _ in range(3):
        routes.finished(A)
    assert routes.in_flight(A) == 0
    assert routes._in_flight == {}


def test_memory_of_failures_is_bounded_by_what_is_recent() -> None:
    clock = Clock()
    routes = router(clock)
    for index in range(50):
        routes.failed(endpoint(f"pod-{index}"))
        clock.now += 1
    assert len(routes._skipped_until) <= 3
