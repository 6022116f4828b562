"""The states of a container, as values. Pure. Next: ``status.py`` renders them for the API."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

OOM_KILLED = "OOMKilled"
START_ERROR = "StartError"
START_ERROR_EXIT = 128
SIGKILL_EXIT = 137


@dataclass(frozen=True)
class Waiting:
    """Not started, or not yet started again."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Running:
    """Its process lives."""

    started_at: datetime


@dataclass(frozen=True)
class Terminated:
    """Its process ended; ``exit_code`` is 128 + n after signal n."""

    exit_code: int
    reason: str
    started_at: datetime
    finished_at: datetime
    message: str = ""
    container_id: str = ""

    @property
    def is_success(self) -> bool:
        """Exit code 0."""
        return self.exit_code == 0


State = Waiting | Running | Terminated


@dataclass(frozen=True)
class View:
    """One container as the pod's status shows it."""

    name: str
    image: str
    state: State
    last: Terminated | None = None
    num_restarts: int = 0
    is_ready: bool = False
    is_started: bool = False
    container_id: str = ""
    is_final: bool = False
    """Nothing will start it again."""

    def moved(self, state: State) -> View:
        """The same container in another state; an end is remembered as ``last``."""
        last = self.state if isinstance(self.state, Terminated) else self.last
        return replace(self, state=state, last=last)


def now() -> datetime:
    """The wall clock, as status fields hold it."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in whole seconds, as the API server stores times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse of ``timestamp``; also reads fractions."""
    return datetime.fromisoformat(text)
