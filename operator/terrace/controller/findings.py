"""What one reconcile found out about a model, as a value.

Owns: the fields that conditions and status are made of. Does not own: finding out
(``reconcile.py``) or wording (``conditions.py``). Pure. Next: ``conditions.py``, ``status.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace.controller import pods
from terrace.controller.facts import Fetch
from terrace.controller.kinds import Manifest, is_deleting

if TYPE_CHECKING:
    from terrace.controller.claims import Claims
    from terrace.controller.placing import Decision
    from terrace.planner.rooms import NoPlacement
    from terrace_runtime.contract import FetchProgress, RuntimeReport


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the status of a model says, before it is put into words."""

    claims: Claims
    replicas: tuple[Manifest, ...] = ()
    """Live replica pods."""
    wanted_replicas: int = 1
    wanted_plan: str = ""
    """Plan label of the set that should run; empty while none should."""
    stateful_set: str = ""
    invalid_spec: str = ""
    """Why the stored spec does not parse."""
    pool_problem: str = ""
    """Why the pool cannot be used although it exists."""
    missing_pool: str = ""
    """Name of the pool that is not there."""
    fetch: Fetch = field(default_factory=Fetch)
    decision: Decision | NoPlacement | None = None
    foreign: str = ""
    """Which object of another owner is in the way."""
    refused: str = ""
    """What the API server said about a child that it does not accept."""
    progress: FetchProgress | None = None
    report: RuntimeReport | None = None

    @property
    def live(self) -> list[Manifest]:
        """Replicas that are not on their way out."""
        return [pod for pod in self.replicas if not is_deleting(pod)]

    @property
    def ready(self) -> list[Manifest]:
        """Replicas that answer, of any plan."""
        return [pod for pod in self.replicas if pods.is_ready(pod)]

    @property
    def current(self) -> list[Manifest]:
        """Replicas that answer with the wanted plan."""
        return [pod for pod in self.ready if pods.plan_label(pod) == self.wanted_plan]
