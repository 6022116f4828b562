"""Nobody gives a slot up whom it would hurt, and readers of streams are served in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.engine_builders import text_request
from terrace_runtime.engine.costs import StepCosts
from terrace_runtime.engine.detokenizer import PieceTable
from terrace_runtime.engine.parking import LEAST_FOR_DUE, LEAST_FOR_NEW, MARGIN, ParkingRule
from terrace_runtime.engine.sequence import Sequence
from terrace_runtime.engine.waiting import urgency

_TABLE = PieceTable([b"x"])
_PACE = 5.0
_NOW = 100.0


def sequence(order: int, **facts: Any) -> Sequence:
    """One with a prompt of a token; ``made`` tokens of at most ``most``, the first at ``since``."""
    request = text_request(
        f"s{order}", priority=facts.get("priority", 0), stream=facts.get("stream", True)
    )
    one = Sequence(request, [0], facts.get("most", 1000), _TABLE)
    one.order = order
    one.arrival = facts.get("arrival", _NOW)
    one.is_restoring = facts.get("is_restoring", False)
    for _ in range(facts.get("made", 0)):
        one.append(0, is_eog=False)
    if facts.get("made"):
        one.output()
        one.first_token_at = facts["since"]
    return one


_SEQUENCES = st.fixed_dictionaries(
    {
        "priority": st.integers(0, 1),
        "stream": st.booleans(),
        "most": st.integers(20, 60),
        "arrival": st.floats(0, _NOW),
        "is_restoring": st.booleans(),
        "made": st.integers(0, 19),
        "since": st.floats(_NOW - 5, _NOW),
    }
)


@dataclass
class Below:
    """Tiers that obey the test."""

    restore_s: float = 0.0
    can_save: bool = True
    room: int = 1 << 30

    def can_hold(self, num_tokens: int) -> bool:
        return num_tokens <= self.room

    def restore_seconds(self, num_tokens: int) -> float:
        assert num_tokens > 0
        return self.restore_s


def rule(pace: float = _PACE, restore_s: float = 0.0, step_s: float = 0.01) -> ParkingRule:
    """One for steps that take ``step_s``, and cells that take ``restore_s`` to come back."""
    costs = StepCosts(16)
    for _ in range(8):
        costs.record(1, 0, step_s)
    return ParkingRule(pace, costs, Below(restore_s))


@given(st.lists(_SEQUENCES, max_size=8), _SEQUENCES, st.sampled_from([0.0, _PACE]))
def test_only_who_is_less_urgent_or_ahead_of_a_reader_gives_its_slot_up(
    facts: list[dict[str, Any]], head_facts: dict[str, Any], pace: float
) -> None:
    running = [sequence(order, **each) for order, each in enumerate(facts)]
    head = sequence(len(facts), **head_facts)
    found = rule(pace).choose(running, head, _NOW)
    free = [one for one in running if not one.is_restoring]
    patient = [one for one in free if urgency(one, _NOW) > urgency(head, _NOW)]
    if patient:
        assert found is not None
        assert found.rests_until == 0
        assert found.sequence in patient
        return
    least = LEAST_FOR_DUE if head.started else LEAST_FOR_NEW

    def ahead(one: Sequence) -> float:
        return one.num_generated - (_NOW - one.first_token_at) * pace

    readers = [
        one
        for one in free
        if one.request.stream and one.started and one.priority >= head.priority
        if one.limit - len(one.tokens) >= LEAST_FOR_NEW and ahead(one) >= least
    ]
    if not pace or not head.request.stream or not readers:
        assert found is None
        return
    assert found is not None
    assert ahead(found.sequence) == max(map(ahead, readers)), "it can wait longest"
    rest_s = found.rests_until - _NOW
    assert abs(ahead(found.sequence) - rest_s * pace - MARGIN) < 1e-6, "its reader has a few left"


@given(st.floats(0, 0.2), st.integers(1, 300), st.booleans())
def test_cells_that_take_long_to_move_stay_until_that_pays(
    restore_s: float,
    made: int,
    is_due: bool,  # noqa: FBT001 - hypothesis passes it by name
) -> None:
    """Of what its tokens took to make, half for one that is new, a tenth for one that rested."""
    step_s = 0.01
    running = [sequence(0, made=made, since=_NOW)]
    head = sequence(1, made=1, since=_NOW - 60) if is_due else sequence(1)
    found = rule(restore_s=restore_s, step_s=step_s).choose(running, head, _NOW)
    share, least = (0.1, LEAST_FOR_DUE) if is_due else (0.5, LEAST_FOR_NEW)
    pays = 2 * restore_s <= share * step_s * (made - MARGIN) + 1e-9
    if found is not None:
        assert pays
        assert made >= least
    elif made >= least:
        assert 2 * restore_s >= share * step_s * (made - MARGIN) - 1e-9


@given(_SEQUENCES, st.integers(0, 30), st.booleans())
def test_nobody_goes_whose_cells_would_be_lost(
    facts: dict[str, Any],
    room: int,
    can_save: bool,  # noqa: FBT001 - hypothesis passes it by name
) -> None:
    running = [sequence(0, **facts), sequence(1, made=19, since=_NOW)]
    below = Below(can_save=can_save, room=room)
    found = ParkingRule(_PACE, StepCosts(16), below).choose(running, sequence(2), _NOW)
    if found is not None:
        assert can_save
        assert not found.rests_until or len(found.sequence.tokens) <= room
