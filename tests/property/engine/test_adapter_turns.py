"""Adapters take turns: few switches, one group in a step, and nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.engine.adapters import MAX_TURN_S, MIN_TURN_S, AdapterTurns

NAMES = ("", "poet", "lawyer", "clerk")


@dataclass(frozen=True)
class One:
    """A running sequence."""

    adapter: str


CROWDS = st.lists(st.sampled_from(NAMES).map(One), max_size=8)
STEPS = st.lists(st.tuples(CROWDS, st.floats(0.001, 0.5)), max_size=200)


@given(STEPS, st.floats(0, 1))
def test_the_adapter_chosen_has_work_whenever_anybody_has(
    steps: list[tuple[list[One], float]], switch_s: float
) -> None:
    turns, now = AdapterTurns(switch_s), 0.0
    for crowd, seconds in steps:
        before = turns.current
        chosen = turns.choose(crowd, now)
        assert chosen in {one.adapter for one in crowd} if crowd else chosen == before
        now += seconds


@given(STEPS, st.floats(0, 1))
def test_a_group_waits_at_most_one_turn_and_one_step_of_each_other_group(
    steps: list[tuple[list[One], float]], switch_s: float
) -> None:
    turns, now = AdapterTurns(switch_s), 0.0
    longest = max((seconds for _, seconds in steps), default=0.0)
    bound = (len(NAMES) - 1) * (turns.turn_s + longest)
    waits_since: dict[str, float] = {}
    for crowd, seconds in steps:
        chosen = turns.choose(crowd, now)
        waiting = {one.adapter for one in crowd} - {chosen}
        waits_since = {name: waits_since.get(name, now) for name in waiting}
        for name, since in waits_since.items():
            assert now - since <= bound + 1e-9, name
        now += seconds


@given(st.floats(0, 1), st.floats(0.001, 0.05), st.integers(2, len(NAMES)))
def test_groups_that_always_have_work_switch_no_more_often_than_their_turns_allow(
    switch_s: float, step_s: float, groups: int
) -> None:
    turns, now = AdapterTurns(switch_s), 0.0
    crowd = [One(name) for name in NAMES[:groups]]
    for _ in range(500):
        turns.choose(crowd, now)
        now += step_s
    assert turns.num_switches <= now / turns.turn_s + 1
    assert turns.num_switches >= int(now / (turns.turn_s + step_s)) - 1
    assert MIN_TURN_S <= turns.turn_s <= MAX_TURN_S


@given(st.sampled_from(NAMES), st.integers(1, 50))
def test_a_single_group_never_switches_more_than_once(name: str, steps: int) -> None:
    turns = AdapterTurns()
    for step in range(steps):
        assert turns.choose([One(name)], float(step)) == name
    assert turns.choose([], 1e6) == name
    assert turns.num_switches == (1 if name else 0)


def test_a_group_that_ended_gives_its_turn_away_at_once() -> None:
    turns = AdapterTurns(switch_s=0.2)
    assert turns.turn_s == 2.0
    assert turns.choose([One("poet"), One("clerk")], 0.0) == "poet"
    assert turns.choose([One("poet"), One("clerk")], 1.9) == "poet"
    assert turns.choose([One("clerk")], 1.95) == "clerk"
    assert turns.choose([One("clerk"), One("poet")], 2.0) == "clerk"
    assert turns.choose([One("clerk"), One("poet")], 3.95) == "poet"
