"""The work queue under any sequence of operations."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from terrace.controller.queue import QueueLimits, WorkQueue

ITEMS = st.sampled_from(["a", "b", "c", "d"])
FAST = QueueLimits(rate_per_s=1e6, burst=1000)


class QueueMachine(RuleBasedStateMachine):
    """Against a model: what was asked for and not yet given must be given."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 0.0
        self.queue: WorkQueue[str] = WorkQueue(lambda: self.time_s, Random(1), FAST)
        self.owed: set[str] = set()
        self.later: dict[str, float] = {}
        self.in_flight: list[str] = []

    @rule(item=ITEMS, is_urgent=st.booleans())
    def add(self, item: str, is_urgent: bool) -> None:  # noqa: FBT001 -- drawn by hypothesis
        self.queue.add(item, is_urgent=is_urgent)
        self.owed.add(item)

    @rule(item=ITEMS, delay_s=st.floats(0, 100))
    def add_after(self, item: str, delay_s: float) -> None:
        self.queue.add_after(item, delay_s)
        self.later[item] = min(self.later.get(item, float("inf")), self.time_s + delay_s)

    @rule(step_s=st.floats(0.001, 50))
    def pass_time(self, step_s: float) -> None:
        self.time_s += step_s

    @rule()
    def take(self) -> None:
        self._fall_due()
        item = self.queue.take()
        if item is None:
            assert self.owed <= set(self.in_flight)
            return
        assert item in self.owed
        assert item not in self.in_flight
        self.owed.discard(item)
        self.in_flight.append(item)

    @precondition(lambda self: self.in_flight)
    @rule()
    def done(self) -> None:
        self._fall_due()
        self.queue.wait_s()  # Looks at the clock, so that what fell due is marked dirty.
        self.queue.done(self.in_flight.pop(0))

    @invariant()
    def waits_no_longer_than_the_next_due(self) -> None:
        self._fall_due()
        wait_s = self.queue.wait_s()
        if self.owed - set(self.in_flight):
            assert wait_s is not None
            assert wait_s < 1e-3
        elif self.later:
            assert wait_s is not None
            assert wait_s <= min(self.later.values()) - self.time_s + 1e-9

    def _fall_due(self) -> None:
        for item, due_at in list(self.later.items()):
            if due_at <= self.time_s:
                del self.later[item]
                self.owed.add(item)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(failures=st.integers(1, 40), seed=st.integers(0, 100))
def test_the_backoff_grows_to_its_ceiling_and_not_beyond(failures: int, seed: int) -> None:
    queue: WorkQueue[str] = WorkQueue(lambda: 0.0, Random(seed))
    delays = [queue.retry("a") for _ in range(failures)]
    for number, delay_s in enumerate(delays):
        ceiling = min(300.0, 0.2 * 2**number)
        assert 0.8 * ceiling <= delay_s <= ceiling
    queue.forget("a")
    assert queue.retry("a") <= 0.2


@given(count=st.integers(1, 300), rate=st.floats(1, 100), burst=st.integers(1, 50))
def test_no_more_items_are_taken_than_the_rate_allows(count: int, rate: float, burst: int) -> None:
    time_s = 0.0
    limits = QueueLimits(rate_per_s=rate, burst=burst)
    queue: WorkQueue[int] = WorkQueue(lambda: time_s, Random(0), limits)
    for item in range(count):
        queue.add(item)
    taken = 0
    while taken < count:
        if queue.take() is None:
            wait_s = queue.wait_s()
            assert wait_s is not None
            time_s += max(wait_s, 1e-6)
        else:
            taken += 1
            assert taken <= burst + time_s * rate + 1e-3
    assert time_s <= max(0, count - burst) / rate + 1e-2 * count


def test_what_is_urgent_goes_first_and_keeps_its_order() -> None:
    queue: WorkQueue[str] = WorkQueue(lambda: 0.0, Random(1), FAST)
    for item in "abcd":
        queue.add(item)
    for item in "cxc":
        queue.add(item, is_urgent=True)
    queue.add("x")
    assert [queue.take() for _ in range(6)] == ["c", "x", "a", "b", "d", None]
