"""What replicas took, kept in the statuses of their models, and what it means for later plans.

Owns: ``status.measured`` and the corrections that it holds for models with the same file. Does not
own: the difference itself (``planner/correction.py``). Pure. A measurement lives as long as one
InferenceModel that has it; it is written when it moved by a step, so that a replica that does
nothing changes nothing. Next: ``reconcile.py`` gives corrections to ``placing.py``.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api.status import MeasuredStatus
from terrace.planner.correction import (
    STEP_BYTES,
    Measured,
    device_class,
    joined,
    learned,
    measured,
)
from terrace.planner.inputs import NO_CORRECTION, Correction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from terrace.controller.kinds import Manifest
    from terrace.controller.manifests import Subject
    from terrace.controller.placing import Decision
    from terrace_runtime.contract import RuntimeReport

MAX_STATUSES = 64
"""Models with the same file that are looked at."""


def measured_status(
    report: RuntimeReport | None, decision: Decision | None, image: str, before: Manifest
) -> MeasuredStatus | None:
    """What the newest report adds; without one that is about this plan, what was known.

    ``image``: the runtime image of the replicas.
    """
    known = _parsed(before)
    if report is None or decision is None or report.plan_digest != decision.plan.digest:
        return known
    taken = measured(decision.plan, report.memory)
    if taken is None:
        return known
    fresh = MeasuredStatus(
        build=report.build,
        image=image,
        device_class=device_class(decision.plan.device),
        planned_host_bytes=taken.planned_host_bytes,
        host_bytes=taken.host_bytes,
        planned_device_bytes=taken.planned_device_bytes,
        device_bytes=taken.device_bytes,
    )
    return known if known is not None and _is_near(known, fresh) else fresh


def corrections_for(
    models: Iterable[Manifest], digest: str, subject: Subject
) -> Mapping[str, Correction]:
    """Device class -> what plans of the file ``digest`` must add there, by all these models."""
    found: dict[str, Correction] = {}
    for model in islice(models, MAX_STATUSES):
        status = model.get("status") or {}
        one = _parsed(status)
        if one is None or (status.get("model") or {}).get("digest") != digest:
            continue
        if not _is_of(subject, one.image):
            continue
        correction = learned(_value(one))
        if correction != NO_CORRECTION:
            others = found.get(one.device_class, NO_CORRECTION)
            found[one.device_class] = joined((others, correction))
    return found


def _is_of(subject: Subject, image: str) -> bool:
    """Whether replicas of ``subject`` may run this image: another build takes other amounts."""
    own = {flavor.runtime_image for flavor in subject.pool.flavors if flavor.runtime_image}
    installed = {subject.runtime_image, *subject.backend_images.values()}
    # The images of backends are the runtime's with a suffix.
    return image in own | installed or image.startswith(f"{subject.runtime_image}-")


def _is_near(known: MeasuredStatus, fresh: MeasuredStatus) -> bool:
    """Whether ``fresh`` says nothing that is worth a write; the highest peak counts."""
    sizes = {"host_bytes", "device_bytes"}
    if known.model_dump(exclude=sizes) != fresh.model_dump(exclude=sizes):
        return False
    host = fresh.host_bytes - known.host_bytes
    return host < STEP_BYTES and abs(fresh.device_bytes - known.device_bytes) < STEP_BYTES


def _parsed(status: Manifest) -> MeasuredStatus | None:
    try:
        return MeasuredStatus.model_validate(status["measured"])
    except (KeyError, ValidationError):
        return None


def _value(one: MeasuredStatus) -> Measured:
    return Measured(
        one.planned_host_bytes, one.host_bytes, one.planned_device_bytes, one.device_bytes
    )
