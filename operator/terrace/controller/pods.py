"""What a pod of ours says about itself.

Owns: reading phase, readiness, termination and waiting reasons out of a pod. Does not own: what
follows from them (``status.py``, ``rollout.py``, ``facts.py``). Pure.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from terrace.api import names
from terrace.controller.kinds import Manifest, is_deleting, labels_of
from terrace_runtime.contract import EXIT_DEVICE_MEMORY, EXIT_HOST_MEMORY, FetchOutcome

if TYPE_CHECKING:
    from terrace.planner.correction import Place

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_START_REASONS = _IMAGE_REASONS | {"CreateContainerConfigError", "CreateContainerError"}
MAX_MESSAGE = 400
"""Characters of a pod's own message that are shown in a condition."""


def is_ready(pod: Manifest) -> bool:
    """Whether the pod takes requests; a pod on its way out does not."""
    return not is_deleting(pod) and _condition(pod, "Ready").get("status") == "True"


def is_bound(pod: Manifest) -> bool:
    """Whether kube-scheduler has given it a node."""
    return bool(pod["spec"].get("nodeName"))


def is_finished(pod: Manifest) -> bool:
    """Whether its containers have ended for good, so that it takes no memory."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def is_running(pod: Manifest) -> bool:
    """Whether its containers run now."""
    return not is_deleting(pod) and pod["status"].get("phase") == "Running"


def plan_label(pod: Manifest) -> str:
    """The plan it was made from."""
    return labels_of(pod).get(names.LABEL_PLAN, "")


def unschedulable(pod: Manifest) -> str | None:
    """kube-scheduler's message, when it found no node."""
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") == "False" and condition.get("reason") == "Unschedulable":
        return str(condition.get("message", ""))[:MAX_MESSAGE]
    return None


def ready_since(pod: Manifest) -> str:
    """When the pod began to take requests; empty when it does not."""
    return str(_condition(pod, "Ready").get("lastTransitionTime") or "") if is_ready(pod) else ""


def homeless_since(pod: Manifest) -> str:
    """Since when kube-scheduler finds no node; empty when it does not say so."""
    if unschedulable(pod) is None:
        return ""
    moment = _condition(pod, "PodScheduled").get("lastTransitionTime")
    return str(moment or pod["metadata"].get("creationTimestamp") or "")


def terminated(pod: Manifest, container: str) -> dict[str, Any] | None:
    """The container's latest termination: the present state, else the one before a restart."""
    status = _container(pod, container)
    for state in (status.get("state"), status.get("lastState")):
        if state and state.get("terminated"):
            return dict(state["terminated"])
    return None


def num_restarts(pod: Manifest, container: str) -> int:
    """How often the kubelet has started the container again."""
    return int(_container(pod, container).get("restartCount") or 0)


def image_problem(pod: Manifest, container: str) -> str | None:
    """Why the image cannot be had."""
    return _waits_for(pod, container, _IMAGE_REASONS)


def start_problem(pod: Manifest, container: str) -> str | None:
    """Why the container cannot be made: its image, a Secret or a ConfigMap that is not there."""
    return _waits_for(pod, container, _START_REASONS)


def is_creating(pod: Manifest, container: str) -> bool:
    """Whether the pod has a node and its container waits for volumes and network."""
    state = _container(pod, container).get("state") or {"waiting": {}}
    reason = (state.get("waiting") or {}).get("reason", "ContainerCreating")
    is_waiting = "waiting" in state and reason == "ContainerCreating"
    return is_waiting and pod["status"].get("phase") == "Pending" and not is_deleting(pod)


def bound_at(pod: Manifest) -> str | None:
    """When kube-scheduler gave it a node."""
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "True":
        return None
    return str(condition.get("lastTransitionTime", ""))


def crash(pod: Manifest, container: str) -> str | None:
    """How the container last ended, when that is why the pod is not ready."""
    ended = terminated(pod, container)
    if is_ready(pod) or ended is None:
        return None
    if ended.get("exitCode") == 0 and ended.get("reason") == "Completed":
        return None
    words = f"exit code {ended.get('exitCode')}"
    if ended.get("reason") not in (None, "", "Error"):
        words += f" ({ended['reason']})"
    said = _last_word(str(ended.get("message") or "").strip())
    return f"{words}: {said}"[:MAX_MESSAGE] if said else words


def fetch_crash(pod: Manifest) -> str | None:
    """How the container that brings the replica's own files last failed, until it succeeds."""
    for status in pod["status"].get("initContainerStatuses") or ():
        state, last = status.get("state") or {}, status.get("lastState") or {}
        ended = state.get("terminated") or last.get("terminated")
        if ended and ended.get("exitCode") and not status.get("ready"):
            return _said(ended)
    return None


def is_fetching(pod: Manifest) -> bool:
    """Whether it brings its own files now."""
    statuses = pod["status"].get("initContainerStatuses") or ()
    return any("running" in (status.get("state") or {}) for status in statuses)


def memory_shortage(pod: Manifest, container: str) -> Place | None:
    """Whose memory was too small when the container last ended, if that was why."""
    ended = terminated(pod, container) or {}
    if ended.get("reason") == "OOMKilled" or ended.get("exitCode") == EXIT_HOST_MEMORY:
        return "host"
    return "device" if ended.get("exitCode") == EXIT_DEVICE_MEMORY else None


def _said(ended: dict[str, Any]) -> str:
    text = str(ended.get("message") or "").strip()
    try:
        failure = FetchOutcome.model_validate_json(text).failure
    except ValidationError:
        failure = None
    words = f"{failure.reason}: {failure.message}" if failure else f"exit code {ended['exitCode']}"
    return words[:MAX_MESSAGE]


def _last_word(text: str) -> str:
    """What a container left; of the end of its log, which the kubelet takes for it, the error."""
    try:
        line = json.loads(text.rpartition("\n")[2])
    except (ValueError, RecursionError):
        return text
    if not isinstance(line, dict) or "event" not in line:
        return text
    return str(line["event"]) if line.get("level") in {"error", "critical"} else ""


def _condition(pod: Manifest, kind: str) -> dict[str, Any]:
    for condition in pod["status"].get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def _waits_for(pod: Manifest, container: str, reasons: frozenset[str]) -> str | None:
    waiting = (_container(pod, container).get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in reasons:
        return f"{waiting['reason']}: {waiting.get('message', '')}"[:MAX_MESSAGE]
    return None


def _container(pod: Manifest, container: str) -> dict[str, Any]:
    for status in pod["status"].get("containerStatuses") or ():
        if status.get("name") == container:
            return dict(status)
    return {}
