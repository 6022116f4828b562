"""When a probe runs and what its results add up to. Pure: times are passed in.

Owns: initial delay, period, thresholds. Does not own: asking the container (``actions.py``).
Next: ``container.py`` runs one loop per probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.local.pods.spec import Probe


class ProbeKind(StrEnum):
    """What a probe decides."""

    STARTUP = "Startup"
    READINESS = "Readiness"
    LIVENESS = "Liveness"


@dataclass
class ProbeMachine:
    """One probe of one run of a container. All times on one monotonic clock, in seconds."""

    kind: ProbeKind
    probe: Probe
    started: float
    """When the container started: the initial delay counts from here."""
    due: float = 0.0
    """When to ask next."""
    holds: bool = False
    """The probe's verdict; a liveness probe is innocent until its threshold is reached."""
    num_successes: int = 0
    num_failures: int = 0

    def __post_init__(self) -> None:
        self.due = self.started + self.probe.initial_delay_s
        self.holds = self.kind is ProbeKind.LIVENESS

    def record(self, *, is_success: bool, asked: float) -> bool:
        """Takes one result of a question asked at ``asked``; True when the verdict changed."""
        self.due = asked + self.probe.period_s
        before = self.holds
        if is_success:
            self.num_successes, self.num_failures = self.num_successes + 1, 0
            if self.num_successes >= self.probe.success_threshold:
                self.holds = True
        else:
            self.num_successes, self.num_failures = 0, self.num_failures + 1
            if self.num_failures >= self.probe.failure_threshold:
                self.holds = False
        return self.holds != before

    @property
    def is_fatal(self) -> bool:
        """The container must be ended: a startup or liveness probe used up its failures."""
        spent = self.num_failures >= self.probe.failure_threshold
        return self.kind is not ProbeKind.READINESS and spent

    @property
    def is_settled(self) -> bool:
        """Nothing is left to ask: a startup probe succeeds once."""
        return self.kind is ProbeKind.STARTUP and self.holds
