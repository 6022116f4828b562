"""What a change makes come back: how long it waits for more, and which look tells the status.

Owns: these two decisions. Does not own: the queue (``queue.py``), what an event concerns
(``controller.py``). Pure: the clock is passed in. A change of one model comes back a dozen times,
from its children, their pods and its own status. What a user asks for goes at once; what comes back
waits, and one reconcile looks at all of it. A status costs the API server more than all else that
follows from a change, so it is written once, together with what came of the change; budgets and
leftovers are seen to by the same look (``writing.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace.api.names import Key

ECHO_S = 0.2
"""How long what comes back waits for more; a deleted child is missing so long."""
BURST_ECHO_S = 1.0
"""The same while users change one model after another."""


class Echoes:
    """One per process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked_at = self._burst_at = -BURST_ECHO_S
        self._asked: set[Key] = set()
        """Models that were changed after their last reconcile began."""
        self._untold: set[Key] = set()
        """Models whose last reconcile told nothing."""

    def ask(self, model: Key) -> None:
        """Somebody has made, changed or deleted the model."""
        now = self._clock()
        if now - self._asked_at < ECHO_S:
            self._burst_at = now
        self._asked_at = now
        self._asked.add(model)

    @property
    def wait_s(self) -> float:
        """How long an echo that comes now waits."""
        return BURST_ECHO_S if self._clock() - self._burst_at < ECHO_S else ECHO_S

    def begin(self, model: Key) -> bool:
        """A reconcile begins: whether it tells the status, or leaves that to one that follows.

        It never leaves it twice in a row: changes without a pause hide nothing.
        """
        tells = model not in self._asked or model in self._untold
        self._asked.discard(model)
        if tells:
            self._untold.discard(model)
        else:
            self._untold.add(model)
        return tells
