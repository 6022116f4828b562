"""What ``terrace explain`` says, as values: the steps of a resource's walk, and where it stands.

Owns: Step, State, Story, Scene. Does not own: finding out (``explain_model.py``,
``explain_pool.py``) or printing (``explain_text.py``). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from terrace.cli.profiles import Learned
    from terrace.controller.kinds import Manifest
    from terrace.controller.observe import Observed
    from terrace.planner.inputs import Cluster


class State(StrEnum):
    """How far one step is."""

    DONE = "done"
    WORKING = "working"
    """It goes on by itself."""
    STUCK = "stuck"
    """Somebody has to do something."""
    WAITING = "waiting"
    """An earlier step is not done."""
    UNKNOWN = "unknown"
    """This user may not read what it takes to tell."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the walk."""

    name: str
    state: State
    summary: str
    reason: str = ""
    """The condition's reason, where one is the matter."""
    details: tuple[str, ...] = ()
    command: str = ""
    """What to type next, where this step is what is in the way."""


@dataclass(frozen=True, slots=True)
class Story:
    """The whole answer about one object."""

    kind: str
    """``im`` or ``ipool``."""
    namespace: str
    name: str
    is_ready: bool
    headline: str
    steps: tuple[Step, ...]
    plan_digest: str = ""
    plan_reasons: tuple[str, ...] = ()
    """Why the plan is as it is."""
    plan_notes: tuple[str, ...] = ()
    """What changed since it was made, and which plan waits."""
    gaps: tuple[str, ...] = ()
    """What this user may not read."""
    next_command: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What was read about one model."""

    seen: Observed
    now: datetime
    cluster: Cluster
    """Nodes, what other models take of them, and the operator's accelerators."""
    learned: Learned
    events: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    """Of objects with these uids, the oldest first."""
    gateways: tuple[Manifest, ...] | None = None
    """Pods of the gateway; None: they may not be read."""
    operators: tuple[Manifest, ...] | None = None
    gaps: tuple[str, ...] = ()


def first_command(steps: tuple[Step, ...]) -> str:
    """What to type about the first step that is stuck, else the first that works."""
    for state in (State.STUCK, State.WORKING, State.UNKNOWN):
        for step in steps:
            if step.state is state and step.command:
                return step.command
    return ""
