"""How often guesses came true, by sequence, by their strength and by their place.

Owns: the decayed counts and the estimate made from them. Does not own: costs (``costs.py``) or the
decision (``controller.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

_DECAY = 0.9
"""What an older observation of a sequence is worth beside the next."""
_GLOBAL_DECAY = 0.98
_PRIOR_TRIED = 2.0
_PRIOR_RATE = 0.7
"""Before anything was seen: hopeful enough to try, at the cost of a few steps."""
_GLOBAL_WEIGHT = 3.0
"""Observations of one sequence that weigh as much as what all others did."""


class _Rate:
    __slots__ = ("accepted", "share", "tried")

    def __init__(self, tried: float = 0.0, accepted: float = 0.0) -> None:
        self.tried = tried
        self.accepted = accepted
        self.share = accepted / tried if tried else 0.0

    def add(self, decay: float, tried: float, accepted: float) -> None:
        self.tried = decay * self.tried + tried
        self.accepted = decay * self.accepted + accepted
        self.share = self.accepted / self.tried


class Acceptance:
    """Chances that the first 1, 2, .. guesses of a sequence are all accepted."""

    def __init__(self, max_tokens: int) -> None:
        """``max_tokens`` is the most guesses of one step."""
        self._max_tokens = max_tokens
        self._places: dict[int, list[_Rate]] = {}
        self._sequences: dict[Hashable, dict[int, _Rate]] = {}

    def observe(self, key: Hashable, strength: int, drafted: int, accepted: int) -> None:
        """``accepted`` of ``drafted`` guesses were right.

        Those after the first wrong one tell nothing.
        """
        if drafted <= 0:
            return
        tried = min(drafted, accepted + 1)
        places = self._at(strength)
        for place in range(tried):
            places[place].add(_GLOBAL_DECAY, 1.0, float(place < accepted))
        own = self._sequences.setdefault(key, {}).setdefault(strength, _Rate())
        own.add(_DECAY**tried, tried, accepted)

    def survival(self, key: Hashable, strength: int, count: int) -> list[float]:
        """Chance that guesses 1..n are all accepted, for n = 1 .. ``count``; never rising."""
        places = self._at(strength)
        tried = accepted = 0.0
        by_strength = self._sequences.get(key)
        if by_strength is not None and (own := by_strength.get(strength)) is not None:
            tried, accepted = own.tried, own.accepted
        weight = tried + _GLOBAL_WEIGHT
        chances = []
        chance = 1.0
        for place in places[:count]:
            chance *= (accepted + _GLOBAL_WEIGHT * place.share) / weight
            chances.append(chance)
        return chances

    def knows(self, key: Hashable) -> bool:
        """Something was observed of this sequence."""
        return key in self._sequences

    def forget(self, key: Hashable) -> None:
        """A sequence ended."""
        self._sequences.pop(key, None)

    def _at(self, strength: int) -> list[_Rate]:
        places = self._places.get(strength)
        if places is None:
            prior = (_PRIOR_TRIED, _PRIOR_TRIED * _PRIOR_RATE)
            places = self._places[strength] = [_Rate(*prior) for _ in range(self._max_tokens)]
        return places
