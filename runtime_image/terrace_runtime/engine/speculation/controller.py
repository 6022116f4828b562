"""Whether guesses pay in this step, and how many of whose.

Owns: the choice of lengths, the account that bounds what a wrong choice may cost, and the reason
why guessing is off. Does not own: measuring (``costs.py``), the guesses (``sources.py``) or time.
Pure. A step of n sequences gives n tokens and the accepted guesses, so guesses pay when tokens per
second rise. Estimates can be wrong, so each step is judged afterwards by what it took: losses are
paid from an account that is filled with a small share of the time spent, and guessing stops when it
is empty. Next: ``speculator.py`` carries the choice out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.engine.costs import Average
from terrace_runtime.engine.speculation.acceptance import Acceptance

if TYPE_CHECKING:
    from collections.abc import Hashable
    from collections.abc import Sequence as Seq

    from terrace_runtime.engine.costs import StepCosts

_MARGIN = 1.03
"""Gains below this are within the noise of a measurement."""
_ALLOWANCE = 0.005
"""Share of the time that guesses may lose in the long run."""
_SAVINGS = 6.0
"""Most that the account holds, in steps without guesses."""
_OVERDRAFT = 6.0
"""How far a choice that promises a gain may overdraw the account, in such steps."""
_REFRESH_STEPS = 8
"""Steps with guesses between two without, which keep the measured cost of those true."""
_REFRESH_PLAIN = 2
"""Steps without: the first one pays for the change, the second one is measured."""
_STICKY = 0.95
"""A length as good as this share of the best is kept: each change of length costs a graph."""
_PROBE_STEPS = 16
"""Steps between two tries while guessing loses; doubles with each lost try."""
_MAX_PROBE_STEPS = 256
_RESTED = 5.0
"""What the account must hold before anything is looked up again after it was empty."""
_OUTLIER = 1.25
"""A step that another process disturbed is judged as so many times what was expected at most."""


class Candidate(NamedTuple):
    """A decoding sequence and what could be guessed for it."""

    key: Hashable
    max_tokens: int
    """Guesses there are, or that could be made; 0: none."""
    strength: int = 0
    """Guesses of different strength have rates of their own."""
    max_rows: int = 16
    """Rows beside its own that its KV cells have room for, right guesses or not."""


@dataclass(slots=True)
class _Choice:
    """What was chosen for the step that runs."""

    num_sequences: int
    num_guesses: int


class Controller:
    """One engine's decisions; ``choose``, then ``observe`` each sequence, then ``step``."""

    def __init__(
        self,
        costs: StepCosts,
        max_tokens: int,
        *,
        needs_equal_lengths: bool,
        draft_costs: StepCosts | None = None,
    ) -> None:
        """``needs_equal_lengths``: unequal ones would cost another evaluation each (split KV).

        ``draft_costs`` has the cost of one drafted token by number of sequences; None: no cost.
        """
        self._costs = costs
        self._max_tokens = max_tokens
        self.needs_equal_lengths = needs_equal_lengths
        self._draft_costs = draft_costs
        self._acceptance = Acceptance(max_tokens)
        self._choice: _Choice | None = None
        self._accepted = 0
        self._account = _SAVINGS
        """What guessing may still lose, in steps without guesses."""
        self._look_seconds = Average()
        self._since_plain = 0
        self._plain_left = 0
        self._length = 0
        """Of the last equal guesses."""
        self._until_probe = 0
        self._probe_steps = _PROBE_STEPS
        self._ratio = 0.0
        """Expected speed with guesses over the speed without, of the last choice that had some."""
        self.is_active = False
        """The last choice that could guess did."""
        self.is_resting = False
        """Looking for guesses cost more than it gave: call ``rest`` in place of ``choose``."""

    @property
    def reason(self) -> str:
        """Why it is off; empty while it is on."""
        if self.is_active:
            return ""
        if not self._ratio:
            return "nothing could be guessed yet"
        if self._ratio < _MARGIN:
            return (
                f"by the steps measured, guessing would give {self._ratio:.2f} times the speed"
                " without; it is tried again from time to time"
            )
        return "guesses promised more than they gained; they are tried again from time to time"

    def rest(self, num_sequences: int) -> None:
        """A plain step of ``num_sequences`` for which nothing was looked up."""
        self._choice, self._accepted = _Choice(num_sequences, 0), 0

    def choose(self, candidates: Seq[Candidate], room: int, num_fillers: int = 0) -> list[int]:
        """Number of guesses for each candidate, ``room`` in all at most; all 0: a plain step.

        With equal lengths a candidate may get more than it has: fill up with any token. Each of
        ``num_fillers`` will have as many rows as a candidate.
        """
        self._choice, self._accepted = None, 0
        nothing = [0] * len(candidates)
        base = self._costs.decode_seconds(len(candidates) + num_fillers)
        if base <= 0:
            return nothing
        self._choice = _Choice(len(candidates), 0)
        if not any(one.max_tokens for one in candidates):
            return nothing
        lengths, seconds, rate = self._best(candidates, room, num_fillers)
        if not any(lengths):
            return nothing
        self._ratio = rate * base / len(candidates)
        if not self._is_allowed(candidates, seconds / base - 1):
            return nothing
        self._choice = _Choice(len(candidates), sum(lengths))
        return lengths

    def observe(self, key: Hashable, strength: int, drafted: int, accepted: int) -> None:
        """``accepted`` of a sequence's ``drafted`` guesses were right, fill-ups not counted."""
        self._acceptance.observe(key, strength, drafted, accepted)
        self._accepted += accepted

    def forget(self, key: Hashable) -> None:
        """A sequence ended."""
        self._acceptance.forget(key)

    def step(
        self, num_rows: int, seconds: float, draft_seconds: float = 0.0, look_seconds: float = 0.0
    ) -> None:
        """The chosen step took ``seconds`` for ``num_rows`` rows.

        Before it ``draft_seconds`` were spent in a draft model and ``look_seconds`` on looking up
        and choosing. More rows than were chosen are fillers; fewer: guesses were given up, and
        nothing is learnt.
        """
        choice, self._choice = self._choice, None
        if choice is None or num_rows < choice.num_sequences + choice.num_guesses:
            return
        if look_seconds:
            self._look_seconds.add(choice.num_sequences, look_seconds)
        base = self._costs.decode_seconds(num_rows)
        if not choice.num_guesses:
            excess = 0.0
            if self._since_plain and base > 0:
                excess = max(0.0, min(seconds / base - 1, 1.0))
            self._since_plain = 0
            self._until_probe -= 1
            if base > 0:
                self._pay(_ALLOWANCE - min(look_seconds / base, 1) - excess)
            return
        self._since_plain += 1
        num_sequences = choice.num_sequences
        rows_each = 1 + choice.num_guesses // num_sequences if self.needs_equal_lengths else 1
        num_fillers = (num_rows - num_sequences - choice.num_guesses) // rows_each
        base = self._costs.decode_seconds(num_sequences + num_fillers)
        expected = self._costs.decode_seconds(num_rows)
        # A step faster than expected says that the pace changed, and the base with it.
        spent = max(expected, min(seconds, _OUTLIER * expected)) + draft_seconds + look_seconds
        gained = 1 + self._accepted / num_sequences - spent / base
        self._pay(gained + _ALLOWANCE * spent / base)
        if gained > 0:
            self._until_probe, self._probe_steps = 0, _PROBE_STEPS
        elif self._until_probe <= 0:
            self._until_probe = self._probe_steps
            self._probe_steps = min(2 * self._probe_steps, _MAX_PROBE_STEPS)

    def is_worth(self, seconds: float, num_sequences: int, remaining_tokens: int) -> bool:
        """One-off ``seconds`` before a sequence's first guess may be spent.

        They are expected to come back while it generates ``remaining_tokens``, or a try is due.
        """
        base = self._costs.decode_seconds(num_sequences)
        if base <= 0 or (0 < self._ratio < _MARGIN and self._until_probe > 0):
            return False
        everybody = [Candidate(None, self._max_tokens)] * num_sequences
        _, _, rate = self._best(everybody, num_sequences * self._max_tokens)
        if not rate:
            return False
        left = self._account - seconds / base
        if (base / num_sequences - 1 / rate) * remaining_tokens > seconds:
            return left > -_OVERDRAFT
        self._ratio = rate * base / num_sequences
        self.is_active = False
        return self._until_probe <= 0 and left > 0

    def charge(self, seconds: float, num_sequences: int) -> None:
        """One-off ``seconds`` were spent while ``num_sequences`` decoded."""
        base = self._costs.decode_seconds(num_sequences)
        if base > 0:
            self._pay(-seconds / base)

    # The choice -----------------------------------------------------------------------------------

    def _is_allowed(self, candidates: Seq[Candidate], worst: float) -> bool:
        """``worst``: steps without guesses that are lost if no guess is right."""
        if self._ratio >= _MARGIN:
            if self._since_plain >= _REFRESH_STEPS:
                self._plain_left = _REFRESH_PLAIN
            if self._plain_left > 0:
                self._plain_left -= 1
                return False
            self.is_active = self._account - worst > -_OVERDRAFT
            return self.is_active
        self.is_active = False
        # The belief in a great loss may be what is wrong: a try is never out of reach for good.
        if self._account < min(worst, _RESTED):
            return False
        return self._until_probe <= 0 or any(
            one.max_tokens and not self._acceptance.knows(one.key) for one in candidates
        )

    def _pay(self, steps: float) -> None:
        self._account = min(_SAVINGS, self._account + steps)
        if self.is_resting:
            self.is_resting = self._account < _RESTED
        else:
            self.is_resting = self._account < 0 and not self.is_active

    def _best(
        self, candidates: Seq[Candidate], room: int, num_fillers: int = 0
    ) -> tuple[list[int], float, float]:
        """Lengths with the highest rate among those with guesses: (lengths, seconds, tokens/s)."""
        survivals = [
            self._acceptance.survival(one.key, one.strength, min(one.max_tokens, self._max_tokens))
            for one in candidates
        ]
        if self.needs_equal_lengths:
            return self._best_equal(candidates, survivals, room, num_fillers)
        return self._best_free(survivals, room)

    def _best_equal(
        self,
        candidates: Seq[Candidate],
        survivals: list[list[float]],
        room: int,
        num_fillers: int,
    ) -> tuple[list[int], float, float]:
        count, wide = len(candidates), len(candidates) + num_fillers
        num_drafting = len(survivals) - survivals.count([])
        most = min((room - num_fillers) // wide, *[one.max_rows for one in candidates])
        gains = [sum(place) for place in zip_longest(*survivals, fillvalue=0.0)]
        best, best_seconds, best_rate = kept = (0, 0.0, 0.0)
        tokens = float(count)
        for length, gain in enumerate(gains[: max(0, most)], start=1):
            tokens += gain
            seconds = self._seconds(wide * (1 + length), num_drafting, length)
            if tokens / seconds > best_rate:
                best, best_seconds, best_rate = length, seconds, tokens / seconds
            if length == self._length:
                kept = (length, seconds, tokens / seconds)
        if kept[2] >= _STICKY * best_rate:
            best, best_seconds, best_rate = kept
        self._length = best
        return [best] * count, best_seconds, best_rate

    def _best_free(self, survivals: list[list[float]], room: int) -> tuple[list[int], float, float]:
        """Guesses by falling chance: the best choice of any number is a beginning of that list."""
        count = len(survivals)
        by_chance = sorted(
            ((chance, -index) for index, one in enumerate(survivals) for chance in one),
            reverse=True,
        )[:room]
        lengths = [0] * count
        longest = num_drafting = best = 0
        best_seconds = best_rate = 0.0
        tokens = float(count)
        for number, (chance, index) in enumerate(by_chance, start=1):
            num_drafting += not lengths[-index]
            lengths[-index] += 1
            longest = max(longest, lengths[-index])
            tokens += chance
            seconds = self._seconds(count + number, num_drafting, longest)
            if tokens / seconds > best_rate:
                best, best_seconds, best_rate = number, seconds, tokens / seconds
        chosen = [0] * count
        for _, index in by_chance[:best]:
            chosen[-index] += 1
        return chosen, best_seconds, best_rate

    def _seconds(self, num_rows: int, num_drafting: int, length: int) -> float:
        """Expected seconds of a step and of making its guesses."""
        seconds = self._costs.decode_seconds(num_rows) + self._look_seconds.value
        if self._draft_costs is not None:
            seconds += length * self._draft_costs.decode_seconds(num_drafting)
        return seconds
