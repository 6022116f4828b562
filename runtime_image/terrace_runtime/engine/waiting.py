"""Who comes first: the queue of admitted requests that have no slot yet, and fair shares.

Owns: the order by priority with ageing, then by tenants' shares, then by arrival. Does not own:
slots or budgets (``batch_planner.py``). Pure: the clock's time is an argument. Shares are the
virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):
the tenant that was served the fewest tokens goes first; one that comes back from idleness starts
at the lowest active counter, so that nobody saves up. Next: ``core.py`` pops from it.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from terrace_runtime.engine.sequence import Sequence

AGEING_S = 30.0
"""Each such wait lifts a request by one priority, so that batch work is never starved."""


def urgency(sequence: Sequence, now: float) -> int:
    """Priority after ageing: lower goes first."""
    return sequence.priority - int((now - sequence.arrival) / AGEING_S)


class TenantShares:
    """Tokens served per tenant that has work; tenants without work are forgotten."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._active: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        """One more sequence of ``tenant`` waits or runs."""
        if tenant not in self._active:
            self._served[tenant] = min(self._served.values(), default=0)
        self._active[tenant] = self._active.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """A sequence of ``tenant`` ended."""
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant], self._served[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """``tenant`` was served ``tokens``."""
        self._served[tenant] += tokens

    def served(self, tenant: str) -> int:
        """The counter that ranks ``tenant``."""
        return self._served.get(tenant, 0)


class WaitingQueue:
    """Waiting sequences by (priority, tenant), first in first out in each."""

    def __init__(self, shares: TenantShares) -> None:
        """``shares`` ranks the tenants."""
        self._shares = shares
        self._lines: dict[tuple[int, str], dict[str, Sequence]] = {}
        self._size = 0
        self._held: dict[str, Sequence] = {}
        """Out of the order for now: each waits for a prefix that another one computes."""
        self._resting: dict[str, Sequence] = {}
        """Out of the order until their readers need more."""

    def __len__(self) -> int:
        return self._size + len(self._held) + len(self._resting)

    @property
    def is_empty(self) -> bool:
        """Nobody can be popped; some may be held, or rest."""
        return self._size == 0

    def some(self, count: int) -> Iterator[Sequence]:
        """About those ``count`` that will be next: held ones, then line by line."""
        lines = (line.values() for line in self._lines.values())
        return islice(chain(self._held.values(), *lines), max(0, count))

    def hold(self, sequence: Sequence) -> None:
        """Set a popped sequence aside until ``release`` lets it in again."""
        self._held[sequence.id] = sequence

    def put_back(self, sequence: Sequence) -> None:
        """Take a sequence that lost its slot: the next in its line, or resting until it is due."""
        if sequence.rests_until:
            self._resting[sequence.id] = sequence
        else:
            self.push_front(sequence)

    def wake(self, now: float | None = None) -> bool:
        """Queue those that have rested until ``now``, or without it the next one; True: somebody.

        They go before their tenants' others, those whose readers wait longest first.
        """
        if not self._resting:
            return False
        by_need = sorted(self._resting.values(), key=lambda one: one.rests_until)
        due = by_need[:1] if now is None else [one for one in by_need if one.rests_until <= now]
        for sequence in reversed(due):
            del self._resting[sequence.id]
            self.push_front(sequence)
        return bool(due)

    def release(self, may_run: Callable[[Sequence], bool]) -> None:
        """Put those that are held and may run before their tenants' others, in their order."""
        released = [one for one in self._held.values() if may_run(one)]
        for sequence in reversed(released):
            del self._held[sequence.id]
            self.push_front(sequence)

    def push(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        line = self._lines.setdefault((sequence.priority, sequence.tenant), {})
        assert sequence.id not in line, "a request is queued once"
        line[sequence.id] = sequence
        self._size += 1

    def push_front(self, sequence: Sequence) -> None:
        """Queue a sequence that ran already and lost its slot: it goes before its tenant's own."""
        key = (sequence.priority, sequence.tenant)
        self._lines[key] = {sequence.id: sequence, **self._lines.get(key, {})}
        self._size += 1

    def head(self, now: float) -> Sequence | None:
        """The next one to run, or None when nobody waits. Looks at the head of each line alone."""
        heads = [next(iter(line.values())) for line in self._lines.values()]
        if not heads:
            return None
        return min(
            heads,
            key=lambda head: (urgency(head, now), self._shares.served(head.tenant), head.order),
        )

    def pop(self, now: float) -> Sequence | None:
        """Take the next one to run out of the queue."""
        first = self.head(now)
        if first is not None:
            self.remove(first)
        return first

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that is queued, held or resting."""
        if self._held.pop(sequence.id, None) or self._resting.pop(sequence.id, None):
            return
        key = (sequence.priority, sequence.tenant)
        line = self._lines[key]
        del line[sequence.id]
        if not line:
            del self._lines[key]
        self._size -= 1
