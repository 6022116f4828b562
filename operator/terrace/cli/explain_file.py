"""File and facts of a model: the first two steps of the walk.

Owns: their words. Does not own: fetching (``terrace_runtime.models``) or judging it
(``controller/facts.py``). Pure. Next: ``explain_placement.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api.conditions import ConditionType, Reason
from terrace.api.file_status import DownloadStatus, ModelStatus
from terrace.cli.advice import About, command_for
from terrace.cli.conditions import condition
from terrace.cli.explain_replicas import warnings
from terrace.cli.plan_table import model_words, projector_words
from terrace.cli.walk import Scene, State, Step
from terrace.controller.facts import persisted_projector
from terrace.controller.kinds import JOB, is_controlled_by, uid_of
from terrace.planner.nodes import format_bytes
from terrace_runtime.contract import ModelFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.controller.kinds import Manifest
    from terrace.controller.observe import Observed
    from terrace_runtime.contract import ProjectorFacts

_UNDER_WAY = (Reason.FETCHING, Reason.FETCH_PENDING)
_PERCENT = 100


def file_step(scene: Scene, about: About) -> Step:
    """Is the model file fetched, verified and read?"""
    model = scene.seen.model
    found = condition(model, ConditionType.MODEL_CACHED)
    if not found.status:
        return Step("file", State.WAITING, f"{about.uri}: the operator has not looked at it yet")
    if found.is_true:
        return Step("file", State.DONE, f"{about.uri}: {found.message}")
    if found.status == "Unknown":
        return Step("file", State.WAITING, found.message, found.reason)
    details = tuple(_job_warnings(scene))
    command = command_for(found.reason, about)
    if found.reason not in _UNDER_WAY:
        summary = f"{about.uri}: {found.message}"
        return Step("file", State.STUCK, summary, found.reason, details, command)
    progress = progress_words(model)
    summary = f"{about.uri}: {progress or found.message}"
    # What waits for a node or an image will not move on by itself.
    is_stuck = bool(details) and found.reason == Reason.FETCH_PENDING
    state = State.STUCK if is_stuck else State.WORKING
    return Step("file", state, summary, found.reason, details, command)


def facts_step(scene: Scene) -> Step:
    """What the file's header says."""
    facts = known_facts(scene)
    if facts is None:
        return Step("facts", State.WAITING, "read from the file's header once it is there")
    words = model_words(facts)
    details = []
    if (projector := known_projector(scene)) is not None:
        details.append(f"takes images: {projector_words(projector)}")
    if facts.chat_template is False and not facts.pooling:
        details.append("no chat template: /v1/chat/completions is refused, completions work")
    if facts.layers_are_merged:
        details.append("layers were merged upwards to fit: sizes are upper bounds")
    return Step("facts", State.DONE, words, details=tuple(details))


def fetch_jobs(seen: Observed) -> list[Manifest]:
    """The Jobs that fetch its files: the model's, and those of what it has beside."""
    return [child for (kind, _), child in seen.children.items() if kind == JOB]


def known_facts(scene: Scene, field: str = "model") -> ModelFacts | None:
    """The facts in ``status.model`` or ``status.draft``; None where there are none to be read."""
    stored = (scene.seen.model.get("status") or {}).get(field)
    if not stored:
        return None
    try:
        # Beside the facts it holds where the file lies, which no plan depends on.
        values = ModelStatus.model_validate(stored).model_dump(include={*ModelFacts.model_fields})
        return ModelFacts.model_validate(values)
    except ValidationError:
        return None


def known_projector(scene: Scene) -> ProjectorFacts | None:
    """The facts in ``status.projector``; None where there are none to be read."""
    found = persisted_projector((scene.seen.model.get("status") or {}).get("projector"))
    return found.facts if found else None


def progress_words(model: Manifest) -> str:
    """``status.download`` in a sentence; empty while nothing is downloaded."""
    stored = (model.get("status") or {}).get("download")
    if not stored:
        return ""
    try:
        status = DownloadStatus.model_validate(stored)
    except ValidationError:
        return ""
    words = f"{status.stage}: {format_bytes(status.done_bytes)}"
    if status.total_bytes:
        share = status.done_bytes * _PERCENT // status.total_bytes
        words += f" of {format_bytes(status.total_bytes)} ({share} %)"
    if status.bytes_per_second:
        words += f", {format_bytes(status.bytes_per_second)}/s"
    if status.seconds_left is not None:
        words += f", {status.seconds_left} s left"
    return words


def _job_warnings(scene: Scene) -> Iterator[str]:
    for job in fetch_jobs(scene.seen):
        for words in warnings(scene, uid_of(job)):
            yield f"{job['metadata']['name']}: event {words}"
        for pod in scene.seen.pods:
            if is_controlled_by(pod, uid_of(job)):
                for words in warnings(scene, uid_of(pod)):
                    yield f"{pod['metadata']['name']}: event {words}"
