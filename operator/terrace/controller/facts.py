"""The fact and progress channels: what a fetch Job and its pods say about one file.

Owns: reading FetchOutcome and FetchProgress, which facts count, when the Job must run again.
Does not own: which files a model has (``files.py``), making or deleting the Job (``diff.py``,
``apply.py``). Pure. Next: ``files.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from pydantic import ValidationError

from terrace.api.file_status import ModelStatus, ProjectorStatus
from terrace.controller import pods
from terrace.controller.kinds import Manifest, is_controlled_by, uid_of
from terrace.controller.model_volumes import EACH_REPLICAS, volume_claim
from terrace_runtime.contract import (
    EXIT_MODEL_MISSING,
    FETCH_CONTAINER,
    RUNTIME_CONTAINER,
    FetchFailure,
    FetchOutcome,
    FetchProgress,
    FileFacts,
    ModelFacts,
    ProjectorFacts,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE_S = 20.0
"""Seconds that a finished Job's pod may stay unseen: the two come by different watches."""
PATIENCE_S = 10.0
"""Seconds that a fetch pod may take to start before its volumes are suspected."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model file that is in place."""

    facts: ModelFacts
    path: str
    claim: str = ""
    """The claim it lies on; empty in what an older operator wrote down."""


@dataclass(frozen=True, slots=True)
class KnownProjector:
    """A projector that is in place."""

    facts: ProjectorFacts
    path: str
    claim: str = ""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file without facts of a model that is in place: an adapter."""

    facts: FileFacts
    path: str
    claim: str = ""


Known = TypeVar("Known", bound=KnownModel | KnownProjector | KnownFile)
AnyFetch: TypeAlias = "Fetch[KnownModel] | Fetch[KnownProjector] | Fetch[KnownFile]"


@dataclass(frozen=True, slots=True)
class Fetch(Generic[Known]):
    """Where fetching one file stands."""

    known: Known | None = None
    failure: FetchFailure | None = None
    """Of the newest try; the file may still be in place from an earlier one."""
    running_pod: Manifest | None = None
    must_rerun: bool = False
    """The Job is to be deleted, so that it is made again."""
    rerun_in_s: float | None = None
    """When to look again whether it must."""
    waiting: str = ""
    """What the fetch pod waits for, if it does."""


def read_fetch(
    job: Manifest | None,
    all_pods: list[Manifest],
    persisted: Known | None,
    read: Callable[[FetchOutcome], Known | None],
    now: datetime,
    retry_s: float,
    claim: str = "",
) -> Fetch[Known]:
    """Judge the Job, its pods and what status holds; the newest success counts.

    ``read``: what of an outcome is the file wanted here. ``claim``: where replicas look for it; a
    file on another one, as of a model that moved to another pool, is not there. Empty: unknown.
    """
    if persisted is not None and claim and persisted.claim not in ("", claim):
        persisted = None
    if job is None or (claim and _claim_of(job) not in ("", claim)):
        return Fetch(known=persisted)
    own = [pod for pod in all_pods if is_controlled_by(pod, uid_of(job))]
    own.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    newest = own[-1] if own else None
    outcome = outcome_of(newest) if newest else None
    found = read(outcome) if outcome else None
    known = replace(found, claim=_claim_of(job)) if found else persisted
    failure = outcome.failure if outcome else None
    running = newest if newest is not None and pods.is_running(newest) else None
    ended_at = finished_at(job)
    if ended_at is None:
        waiting, look_in_s = _waiting(job, newest, now) if newest else ("", None)
        return Fetch(known, failure, running, rerun_in_s=look_in_s, waiting=waiting)
    age_s = (now - ended_at).total_seconds()
    if claim != EACH_REPLICAS and model_missing_since(ended_at, all_pods):
        return Fetch(known, failure, must_rerun=True)
    if failure is not None and not failure.permanent:
        return _rerun(known, failure, age_s, retry_s)
    if known is None and failure is None:
        # The pod is gone, or evicted without a word, and nobody wrote its facts down.
        lost = FetchFailure(
            reason="DownloadFailed", message="the fetch Job left no result", permanent=False
        )
        return _rerun(None, lost if age_s >= SETTLE_S else None, age_s, SETTLE_S)
    return Fetch(known, failure)


def outcome_of(pod: Manifest) -> FetchOutcome | None:
    """The fetch container's result; None while it has none."""
    ended = pods.terminated(pod, FETCH_CONTAINER)
    if ended is None:
        return None
    try:
        return FetchOutcome.model_validate_json(str(ended.get("message") or ""))
    except ValidationError:
        how = pods.crash(pod, FETCH_CONTAINER) or "no result"
        message = f"the fetch pod ended without a result: {how}"
        return FetchOutcome(
            failure=FetchFailure(reason="DownloadFailed", message=message, permanent=False)
        )


def known_model(outcome: FetchOutcome) -> KnownModel | None:
    """The model of a successful outcome."""
    return KnownModel(outcome.facts, outcome.path) if outcome.facts else None


def known_projector(outcome: FetchOutcome) -> KnownProjector | None:
    """The projector of a successful outcome."""
    return KnownProjector(outcome.projector, outcome.path) if outcome.projector else None


def known_file(outcome: FetchOutcome) -> KnownFile | None:
    """The adapter of a successful outcome."""
    return KnownFile(outcome.file, outcome.path) if outcome.file else None


def persisted_model(stored: object) -> KnownModel | None:
    """What status.model holds; None where it is absent or of a version we cannot read."""
    if not stored:
        return None
    try:
        status = ModelStatus.model_validate(stored)
        facts = ModelFacts.model_validate(status.model_dump(exclude={"path", "uri", "claim"}))
    except ValidationError:
        return None
    return KnownModel(facts, status.path, status.claim)


def model_status(known: KnownModel, uri: str = "") -> ModelStatus:
    """The facts as status.model and status.draft show them."""
    place = {"path": known.path, "claim": known.claim, "uri": uri}
    return ModelStatus.model_validate({**known.facts.model_dump(), **place})


def persisted_projector(stored: object) -> KnownProjector | None:
    """What status.projector holds; None where it is absent or of a version we cannot read."""
    if not stored:
        return None
    try:
        status = ProjectorStatus.model_validate(stored)
        facts = ProjectorFacts.model_validate(status.model_dump(exclude={"path", "uri", "claim"}))
    except ValidationError:
        return None
    return KnownProjector(facts, status.path, status.claim)


def projector_status(known: KnownProjector, uri: str = "") -> ProjectorStatus:
    """The facts as status.projector shows them."""
    place = {"path": known.path, "claim": known.claim, "uri": uri}
    return ProjectorStatus.model_validate({**known.facts.model_dump(), **place})


def parse_progress(log: str) -> FetchProgress | None:
    """The last complete line that is a FetchProgress."""
    for line in reversed(log.splitlines()):
        try:
            return FetchProgress.model_validate_json(line)
        except ValidationError:
            continue
    return None


def finished_at(job: Manifest) -> datetime | None:
    """When the Job completed or failed for good."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True":
            return parse_time(str(condition.get("lastTransitionTime", "")))
    return None


def model_missing_since(fetched_at: datetime, all_pods: list[Manifest]) -> bool:
    """Whether a replica found no file although the Job had ended by then."""
    for pod in all_pods:
        ended = pods.terminated(pod, RUNTIME_CONTAINER)
        if ended is not None and ended.get("exitCode") == EXIT_MODEL_MISSING:
            noticed_at = parse_time(str(ended.get("finishedAt", "")))
            if noticed_at > fetched_at:
                return True
    return False


def parse_time(text: str) -> datetime:
    """RFC 3339; what does not parse counts as long ago."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _rerun(
    known: Known | None, failure: FetchFailure | None, age_s: float, after_s: float
) -> Fetch[Known]:
    if age_s >= after_s:
        return Fetch(known, failure, must_rerun=True)
    return Fetch(known, failure, rerun_in_s=after_s - age_s)


def _waiting(job: Manifest, pod: Manifest, now: datetime) -> tuple[str, float | None]:
    """What the pod waits for, and in how many seconds that may have to be said in other words."""
    said = pods.start_problem(pod, FETCH_CONTAINER) or pods.unschedulable(pod) or ""
    bound_at = pods.bound_at(pod)
    if said or bound_at is None or not pods.is_creating(pod, FETCH_CONTAINER):
        return said, None
    # A volume that cannot be mounted is told in events alone, and those we do not read. A Secret is
    # what users forget, so it is named from the start.
    secrets, volumes = _volumes(job)
    left_s = PATIENCE_S - (now - parse_time(bound_at)).total_seconds()
    if left_s > 0:
        said = f"the fetch pod starts, and mounts {volumes}" if secrets else ""
        return said, left_s
    if not volumes:
        images = " and ".join(f"image {name!r}" for name in _images(job))
        return f"the fetch pod waits for its node to pull {images}" if images else "", None
    advice = "must be there, in this namespace; create what is missing"
    return f"the fetch pod waits for its volumes: {volumes} {advice}", None


def _claim_of(job: Manifest) -> str:
    pod = ((job.get("spec") or {}).get("template") or {}).get("spec") or {}
    claims = map(volume_claim, pod.get("volumes") or ())
    return next(filter(None, claims), EACH_REPLICAS)


def _volumes(job: Manifest) -> tuple[list[str], str]:
    """Names of the Secrets that its pods mount, and all that they mount of others in words."""
    volumes = _pod_volumes(job)
    secrets = [v["secret"]["secretName"] for v in volumes if v.get("secret")]
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in volumes if v.get("persistentVolumeClaim")
    ]
    wanted = [f"Secret {name!r}" for name in secrets] + [f"claim {name!r}" for name in claims]
    return secrets, " and ".join(wanted)


def _images(job: Manifest) -> list[str]:
    return [str(v["image"]["reference"]) for v in _pod_volumes(job) if v.get("image")]


def _pod_volumes(job: Manifest) -> list[Manifest]:
    return [*(job["spec"]["template"]["spec"].get("volumes") or ())]
