"""Where guesses come from: the sequence's own text, or a draft model.

Owns: one n-gram index per sequence, and the draft model's slots with what it has yet to read.
Does not own: how many guesses are wanted (``controller.py``). Next: ``speculator.py`` asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.engine.costs import MIN_CHUNK
from terrace_runtime.engine.speculation.ngram import NgramIndex

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import Drafter
    from terrace_runtime.engine.costs import StepCosts
    from terrace_runtime.engine.sequence import Sequence
    from terrace_runtime.engine.speculation.ngram import Guess

_MAX_INDEX, _MIN_INDEX = 2**15, 2**12
_ALL_INDEXES = 2**19
"""Entries of all indexes together; each takes 12 bytes (6 MiB, 12 MiB with 255 sequences)."""
_SLICE_TOKENS = 2048
"""Tokens indexed in one step, over all sequences: about 1 ms."""
_USUAL_TOKENS = 2
"""Tokens that the draft model has yet to read after a step whose guesses were right."""
_CATCH_UP_TOKENS = 256
"""Tokens of a prompt that the draft model reads in one step, so that nobody's stream stalls."""


class NgramSource:
    """Prompt lookup for all sequences."""

    def __init__(self, parallel: int) -> None:
        """``parallel`` sequences share the memory of the indexes."""
        share = max(_MIN_INDEX, min(_MAX_INDEX, _ALL_INDEXES // parallel))
        self._size = 1 << (share.bit_length() - 1)
        self._indexes: dict[str, NgramIndex] = {}

    def guess(self, sequences: Seq[Sequence], most: Seq[int]) -> list[Guess]:
        """At most ``most[i]`` tokens for each sequence; a long prompt is indexed bit by bit."""
        left = _SLICE_TOKENS
        guesses = []
        for sequence, count in zip(sequences, most, strict=True):
            index = self._indexes.get(sequence.id)
            if index is None:
                index = self._indexes[sequence.id] = NgramIndex(self._size)
            left -= index.extend(sequence.text, left)
            guesses.append(index.propose(sequence.text, count))
        return guesses

    def forget(self, sequence: Sequence) -> None:
        """It ended or lost its slot; it is indexed again if it comes back."""
        self._indexes.pop(sequence.id, None)


class DraftSource:
    """A draft model and the sequences that its slots hold."""

    def __init__(self, drafter: Drafter, costs: StepCosts, clock: Callable[[], float]) -> None:
        """``costs`` gets the seconds of one drafted token by number of sequences."""
        self._drafter = drafter
        self._costs = costs
        self._clock = clock
        self._owners: dict[int, str] = {}

    def num_missing(self, sequence: Sequence) -> int:
        """Tokens that the draft model has yet to read, the last one not counted."""
        return self._drafter.num_missing(self._slot(sequence), len(sequence.text))

    def read_seconds(self, num_tokens: int) -> float:
        """Expected seconds of reading ``num_tokens``; 0 until some were read."""
        speed = self._costs.prefill_tokens_per_second
        return num_tokens / speed if speed else 0.0

    def catch_up(self, sequence: Sequence) -> float:
        """Read a part of what is missing; returns seconds."""
        slot = self._slot(sequence)
        started = self._clock()
        num_read = self._drafter.catch_up(slot, sequence.text, _CATCH_UP_TOKENS)
        seconds = self._clock() - started
        if num_read >= MIN_CHUNK:
            self._costs.record(0, num_read, seconds)
        return seconds

    def guess(self, sequences: Seq[Sequence], length: int) -> tuple[list[list[int]], float]:
        """``length`` guesses for each, fewer where the draft model is full; and the seconds."""
        slots = [self._slot(sequence) for sequence in sequences]
        started = self._clock()
        for slot, sequence in zip(slots, sequences, strict=True):
            if self._drafter.num_missing(slot, len(sequence.text)) > _USUAL_TOKENS:
                self._drafter.catch_up(slot, sequence.text, _CATCH_UP_TOKENS)
        read = self._clock()
        guesses = self._drafter.propose(slots, [one.text for one in sequences], length)
        seconds = self._clock() - read
        self._costs.record(len(sequences), 0, seconds / length)
        return guesses, seconds + read - started

    def forget(self, sequence: Sequence) -> None:
        """It ended or lost its slot."""
        for slot, owner in list(self._owners.items()):
            if owner == sequence.id:
                del self._owners[slot]
                self._drafter.forget(slot)

    def _slot(self, sequence: Sequence) -> int:
        """The sequence's slot, emptied if another one left its tokens there."""
        slot = sequence.slot
        assert slot is not None, "only running sequences are guessed for"
        if self._owners.get(slot) != sequence.id:
            self.forget(sequence)
            self._drafter.forget(slot)
            self._owners[slot] = sequence.id
        return slot
