"""What every reconcile is given: ports, cache, settings, clock.

Owns: nothing but the names. Next: ``reconcile.py`` and ``pools.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace.controller.contest import Contest
from terrace.controller.events import Recorder
from terrace.planner.accelerators import AcceleratorTable, built_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from terrace.api.names import Key
    from terrace.controller.cache import Cache
    from terrace.controller.config import OperatorConfig
    from terrace.controller.port import Cluster
    from terrace.controller.progress import ProgressReader
    from terrace.controller.report import Reports


@dataclass(slots=True)
class Context:
    """Shared by all reconciles of one process."""

    cluster: Cluster
    cache: Cache
    config: OperatorConfig
    reports: Reports
    progress: ProgressReader
    now: Callable[[], datetime]
    """Wall clock, UTC."""
    trust_key: str = ""
    """Public key for replicas; learned with each full list, so before the first reconcile."""
    accelerators: AcceleratorTable = field(default_factory=built_in)
    """What devices there are."""
    count_plan: Callable[[], object] = int
    """Called for each plan that is worked out."""
    contest: Contest = field(default_factory=Contest)
    """Who waits for whose devices."""
    events: Recorder = field(init=False)
    """Tells transitions."""

    def __post_init__(self) -> None:
        """Events go to the same cluster."""
        self.events = Recorder(self.cluster)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reconcile ended, for the queue."""

    requeue_s: float | None = None
    """Look again after so many seconds, whatever happens."""
    is_placed: bool = True
    """False: a change of nodes or of other models may help."""
    wake: tuple[Key, ...] = ()
    """Models that are to be looked at now."""
    collector: Key | None = None
    """The pool that is to note which files its models use now."""
