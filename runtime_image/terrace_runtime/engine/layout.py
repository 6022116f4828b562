"""Which layout of KV cells suits the open requests: split, or unified where prompts are shared.

Owns: what a step costs in each layout, and which one a demand suits. Does not own: making the
change (``relayout.py``, which asks). Pure.

In split cells each sequence attends to its own, however many others hold the same. In unified cells
a common beginning is held once, but every sequence's attention looks at everybody's cells, to find
that most are not its own. So what is shared decides, and it is known as soon as requests wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.engine.sequence import Sequence

ATTENDED, PASSED = 0.41, 0.16
"""What an attended and a passed-by cell cost in unified KV, where a cell of split KV costs 1.
*Measured* with 16 sequences of 1,500 tokens on the 150M model, two cores: per step 144 ms split,
90 unified and shared, 370 unified and different; 22 ms without cells."""
MARGIN = 0.2
"""The other layout must be so much cheaper."""
MIN_GAIN = 1024
"""Cells of split KV that a step must gain: about 5 ms there. A change costs about 300 ms."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What will run at the same time; counts in cells."""

    sequences: int
    held: int
    """By each for itself."""
    distinct: int
    """With common beginnings held once."""

    @property
    def split_cost(self) -> float:
        """Of a step's attention, in cells of split KV."""
        return self.held

    @property
    def unified_cost(self) -> float:
        """The same in unified KV."""
        return ATTENDED * self.held + PASSED * self.sequences * self.distinct


def demand_of(sequences: Iterable[Sequence], block_tokens: int) -> Demand:
    """Demand of sequences with their keys: prompts, and what was generated so far."""
    count = held = keys = 0
    distinct: set[bytes] = set()
    for one in sequences:
        count += 1
        held += len(one.tokens)
        keys += len(one.keys)
        distinct.update(one.keys)
    return Demand(count, held, held - (keys - len(distinct)) * block_tokens)


def suits_unified(demand: Demand, *, is_unified: bool) -> bool:
    """The layout for ``demand``; the present one unless the other is clearly cheaper."""
    if not is_unified and 2 * demand.distinct > demand.held:
        # Few streams would cost less as well, but only sharing was measured with all else equal.
        return False
    here, there = demand.split_cost, demand.unified_cost
    if is_unified:
        here, there = there, here
    is_worth_it = there < (1 - MARGIN) * here and here - there >= MIN_GAIN
    return is_unified != is_worth_it
