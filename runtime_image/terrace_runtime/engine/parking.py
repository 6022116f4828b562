"""Who gives its slot up, and for whom.

Owns: the choice among those that run, for the first in the queue. Does not own: saving its cells
(``prefix.py``), the queue (``waiting.py``). Pure.

A more urgent request gets a slot at once. Among equals, whoever is ahead of its reader makes room:
a person reads some 5 tokens/s, and an answer that is made faster than that is read no sooner. So
where streams queue, a new one gets its first token while those that are ahead stand still until
their readers have nearly caught up. The sum of the work stays the same, and so does the mean time
of whole answers. After Liu et al., "Andes: Defining and Enhancing Quality-of-Experience in
LLM-Based Text Streaming Services" (2024), with a fixed pace and no forecast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from terrace_runtime.engine.waiting import urgency

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from terrace_runtime.engine.costs import StepCosts
    from terrace_runtime.engine.sequence import Sequence

MARGIN = 2
"""Tokens that a reader still has when a stream that rested is due again."""
LEAST_FOR_NEW, LEAST_FOR_DUE = 4, 8
"""Tokens that a stream must be ahead, for one that has not begun, and for one that rested.
Simulated (docs/adr/0031): fewer move more cells for little, more make first tokens late."""
SHARE_FOR_NEW, SHARE_FOR_DUE = 0.5, 0.1
"""Of the time in which those tokens were made, what moving the stream's cells may take: each
request is new once, but those that rested may take turns all the time."""


@dataclass(frozen=True, slots=True)
class Parking:
    """Who is set aside."""

    sequence: Sequence
    rests_until: float = 0.0
    """Seconds on the engine's clock before which it needs no slot; 0: it is the next in line."""


class Tiers(Protocol):
    """What the rule asks of the tiers below the device."""

    @property
    def can_save(self) -> bool:
        """Cells can go there now."""

    def can_hold(self, num_tokens: int) -> bool:
        """Those of so many tokens more would stay there until they are wanted."""

    def restore_seconds(self, num_tokens: int) -> float:
        """What bringing so many tokens back is expected to take; 0: unknown."""


class ParkingRule:
    """Asked whenever somebody waits and no slot is free."""

    def __init__(self, reader_pace: float, costs: StepCosts, tiers: Tiers) -> None:
        """``reader_pace``: tokens/s that a reader is taken to follow; 0: nobody is ever ahead."""
        self._pace = reader_pace
        self._costs = costs
        self._tiers = tiers

    def choose(self, running: Seq[Sequence], head: Sequence, now: float) -> Parking | None:
        """Whoever gives its slot to ``head``, the first in the queue; None: nobody."""
        candidates = [one for one in running if not one.is_restoring]
        if not candidates or not self._tiers.can_save:
            return None
        patient = max(candidates, key=lambda one: (urgency(one, now), one.order))
        if urgency(patient, now) > urgency(head, now):
            return Parking(patient)
        if self._pace and head.request.stream:
            readers = [one for one in candidates if _may_rest(one, head)]
            return self._furthest_ahead(readers, len(running), head, now) if readers else None
        return None

    def _furthest_ahead(
        self, readers: list[Sequence], rows: int, head: Sequence, now: float
    ) -> Parking | None:
        first = max(readers, key=lambda one: (self.ahead(one, now), one.order))
        ahead = self.ahead(first, now)
        least, share = LEAST_FOR_NEW, SHARE_FOR_NEW
        if head.started:
            least, share = LEAST_FOR_DUE, SHARE_FOR_DUE
        is_worth_it = ahead >= max(least, MARGIN + self._switch_tokens(first, rows) / share)
        # Cells that would not stay in the host tier would be computed anew.
        if not is_worth_it or not self._tiers.can_hold(len(first.tokens)):
            return None
        return Parking(first, now + (ahead - MARGIN) / self._pace)

    def ahead(self, sequence: Sequence, now: float) -> float:
        """Tokens of a stream that its reader has not come to yet."""
        return sequence.num_generated - (now - sequence.first_token_at) * self._pace

    def _switch_tokens(self, sequence: Sequence, rows: int) -> float:
        """How many tokens of it could be made while its cells go and come back."""
        token_s = self._costs.decode_seconds(rows) / rows
        return 2 * self._tiers.restore_seconds(len(sequence.tokens)) / token_s if token_s else 0.0


def _may_rest(sequence: Sequence, head: Sequence) -> bool:
    is_read = sequence.request.stream and sequence.started
    # One that is about to end gives its slot up soon anyway.
    is_ending = sequence.limit - len(sequence.tokens) < LEAST_FOR_NEW
    return is_read and not is_ending and sequence.priority >= head.priority
