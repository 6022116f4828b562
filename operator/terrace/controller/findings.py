"""What one reconcile found out about a model, as a value.

Owns: the fields that conditions and status are made of. Does not own: finding out
(``reconcile.py``) or wording (``conditions.py``). Pure. Next: ``conditions.py``, ``status.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace.controller import pods
from terrace.controller.facts import AnyFetch, Fetch, KnownModel
from terrace.controller.files import Extras
from terrace.controller.kinds import Manifest, is_deleting

if TYPE_CHECKING:
    from terrace.controller.claims import Claims
    from terrace.controller.contending import Turn
    from terrace.controller.placing import Decision
    from terrace.controller.progress import Progress
    from terrace.planner.rooms import NoPlacement
    from terrace_runtime.contract import RuntimeReport


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
    image: str = ""
    """Runtime image that replicas of that plan get."""
    invalid_spec: str = ""
    """Why the stored spec does not parse."""
    pool_problem: str = ""
    """Why the pool cannot be used although it exists."""
    missing_pool: str = ""
    """Name of the pool that is not there."""
    fetch: Fetch[KnownModel] = field(default_factory=Fetch)
    """Of the model file."""
    extras: Extras = field(default_factory=Extras)
    """Of projector, draft and adapters."""
    decision: Decision | NoPlacement | None = None
    turn: Turn | None = None
    """How the decision came about, and what the model waits for."""
    foreign: str = ""
    """Which object of another owner is in the way."""
    predecessor: str = ""
    """Which object is still there of a deleted model, or pool, of the same name."""
    refused: str = ""
    """What the API server said about a child that it does not accept."""
    progress: Progress | None = None
    report: RuntimeReport | None = None

    @property
    def fetches(self) -> list[tuple[str, AnyFetch]]:
        """Every file's fetch with its name for messages; the model's own, without one, first."""
        extras = [(file.title, fetch) for file, fetch in self.extras.fetches]
        return [("", self.fetch), *extras]

    @property
    def download(self) -> tuple[str, Manifest] | None:
        """The pod that fetches now, and which file; the first where several do."""
        for title, fetch in self.fetches:
            if fetch.running_pod is not None and fetch.known is None:
                return title, fetch.running_pod
        return None

    @property
    def is_rolling(self) -> bool:
        """Whether replicas with another plan than the wanted one are still there."""
        return bool(self.wanted_plan) and any(
            pods.plan_label(pod) != self.wanted_plan for pod in self.replicas
        )

    @property
    def has_surplus(self) -> bool:
        """Whether replicas are still there that nobody wants any more."""
        return len(self.replicas) > self.wanted_replicas

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
