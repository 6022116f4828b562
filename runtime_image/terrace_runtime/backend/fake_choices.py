"""The fake backend's draft model and sampler: deterministic, and wrong when they should be.

Owns: guesses and draws as pure functions of what was seen and of the seed. Does not own: the
model's own next token (``fake.py``). Next: ``engine.speculation``, ``engine.sampling``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import Drafter, SamplerSettings, TokenChooser
from terrace_runtime.backend.shortlist import Shortlist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from terrace_runtime.backend.fake import FakeBackend


class FakeDrafter(Drafter):
    """Knows what the model says next, and is wrong about it now and then."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._held: dict[int, list[int]] = {}

    @override
    def propose(
        self, slots: Sequence[int], histories: Sequence[Sequence[int]], count: int
    ) -> list[list[int]]:
        assert list(slots) == sorted(set(slots)), "slots ascend"
        return [
            self._guess(slot, list(history), count)
            for slot, history in zip(slots, histories, strict=True)
        ]

    def _guess(self, slot: int, history: list[int], count: int) -> list[int]:
        self.catch_up(slot, history, len(history))
        guesses: list[int] = []
        for _ in range(count):
            seen = history + guesses
            token = self._backend.next_token(seen)
            is_wrong = crc32(bytes(str(seen), "ascii")) % self._backend.draft_errors == 0
            guesses.append((token + 1) % 256 if is_wrong else token)
        return guesses

    @override
    def num_missing(self, slot: int, length: int) -> int:
        return max(0, length - 1 - len(self._held.get(slot, ())))

    @override
    def catch_up(self, slot: int, history: Sequence[int], max_tokens: int) -> int:
        held = self._held.setdefault(slot, [])
        assert held == list(history[: len(held)]), "another sequence's tokens in the draft's slot"
        count = min(max_tokens, self.num_missing(slot, len(history)))
        held.extend(history[len(held) : len(held) + count])
        return count

    @override
    def cut(self, slot: int, length: int) -> None:
        del self._held.setdefault(slot, [])[length:]

    @override
    def forget(self, slot: int) -> None:
        self._held.pop(slot, None)


class FakeShortlist(Shortlist):
    """While it is on, whole rows hold no numbers, so that whoever reads one is found out."""

    size = 4
    switch_s = 0.0

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._is_on = False
        self.num_switches = 0

    @property
    @override
    def is_on(self) -> bool:
        return self._is_on

    @override
    def switch(self, *, on: bool) -> None:
        self.num_switches += on != self._is_on
        self._is_on = on

    @override
    def row(self, row: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        assert self._is_on
        logits = self._backend.row(row)
        tokens = np.sort(np.argsort(-logits, kind="stable")[: self.size])
        return tokens, logits[tokens]


class FakeSampler(TokenChooser):
    """Greedy at temperature 0, else one of the neighbours of the likeliest token, by the seed."""

    def __init__(self, backend: FakeBackend, settings: SamplerSettings) -> None:
        self._backend = backend
        self._settings = settings
        self._counted: list[int] = []
        self.is_closed = False

    @override
    def sample(self, row: int) -> int:
        token = self.draw(row)
        self.accept(token)
        return token

    @override
    def draw(self, row: int, allowed: NDArray[np.intp] | None = None) -> int:
        assert not self.is_closed
        chance = crc32(np.asarray([self._settings.seed, *self._counted], np.int64).tobytes())
        if allowed is not None:
            return int(allowed[chance % allowed.size])
        token = int(self._backend.row(row).argmax())
        if self._settings.temperature > 0 and ord("a") <= token <= ord("z"):
            token = ord("a") + (token - ord("a") + chance % 26) % 26
        return token

    @override
    def accept(self, token: int) -> None:
        self._counted.append(token)

    @override
    def close(self) -> None:
        self.is_closed = True
