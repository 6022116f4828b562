"""Whose turn it is among LoRA adapters: a batch is computed with one adapter alone.

Owns: the choice of the adapter of the next step. Does not own: applying it (``backend``) or what
is computed of its group (``batch_planner.py``). Pure: the clock's time is an argument. llama.cpp
applies an adapter to its whole context and lays its graphs out anew after every switch, so a group
keeps its turn for many steps; the next turn goes to the group that has waited the longest. Next:
``core.py`` asks once in each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

SWITCH_SHARE = 0.1
"""Most of the time that may go into switching while several groups have work."""
MIN_TURN_S = 0.1
MAX_TURN_S = 2.0
"""However slow a switch is, nobody's stream stands still for longer at one other group's turn."""


class Adapted(Protocol):
    """What is asked of a running sequence."""

    @property
    def adapter(self) -> str:
        """Name of its adapter; empty: the model alone."""


class AdapterTurns:
    """Which adapter's group runs next.

    While G groups have work, a group waits for at most G - 1 turns of ``turn_s``, each of which
    ends with the first step that begins after it; a group whose sequences have all ended gives
    the rest of its turn away.
    """

    def __init__(self, switch_s: float = 0.0) -> None:
        """``switch_s``: seconds that a switch costs, measured when the model was loaded."""
        self.turn_s = min(max(switch_s / SWITCH_SHARE, MIN_TURN_S), MAX_TURN_S)
        self.current = ""
        """Adapter of the last step."""
        self.num_switches = 0
        self._since = 0.0
        self._waiting_since: dict[str, float] = {}

    def choose(self, running: Iterable[Adapted], now: float) -> str:
        """The adapter of this step; the current one when nobody runs. ``now`` in seconds."""
        groups = dict.fromkeys(one.adapter for one in running)
        waiting = {name: self._waiting_since.get(name, now) for name in groups}
        waiting.pop(self.current, None)
        is_over = self.current not in groups or now - self._since >= self.turn_s
        if waiting and is_over:
            # Of those that came at the same time, the one whose sequence has the lowest slot.
            following = min(waiting, key=waiting.__getitem__)
            del waiting[following]
            if self.current in groups:
                waiting[self.current] = now
            self.current, self._since = following, now
            self.num_switches += 1
        self._waiting_since = waiting
        return self.current
