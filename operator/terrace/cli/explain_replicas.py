"""Children and replicas of a model: what exists, what runs, what is wrong with it.

Owns: two steps of the walk and the words about pods and their events. Does not own: what a pod says
(``controller/pods.py``). Pure. Next: ``explain_model.py`` puts the steps in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.conditions import ConditionType, Reason
from terrace.cli.advice import About, command_for
from terrace.cli.conditions import condition
from terrace.cli.walk import Scene, State, Step
from terrace.controller import pods
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    SERVICE,
    STATEFULSET,
    Manifest,
    is_controlled_by,
    is_deleting,
    uid_of,
)
from terrace.controller.manifests import has_budget
from terrace.planner.nodes import format_bytes
from terrace_runtime.contract import RUNTIME_CONTAINER

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENTS = 3
MAX_REPLICAS = 10
_EXPECTED = (STATEFULSET, CONFIGMAP, SERVICE)


def children_step(scene: Scene, about: About, *, is_planned: bool) -> Step:
    """What the operator has made for the model."""
    stalled = condition(scene.seen.model, ConditionType.STALLED)
    if stalled.is_true and stalled.reason in (Reason.FOREIGN_OBJECT, Reason.REFUSED):
        command = command_for(stalled.reason, about)
        return Step("children", State.STUCK, stalled.message, stalled.reason, command=command)
    there = {kind for kind, _ in scene.seen.children}
    listed = sorted(f"{kind} {name}" for kind, name in scene.seen.children if kind != CONFIGMAP)
    words = ", ".join(listed) or "none yet"
    if not is_planned:
        only = ", ".join(each for each in listed if each.startswith(f"{JOB}"))
        return Step("children", State.WAITING, f"wait for a plan{f'; {only}' if only else ''}")
    expected = (*_EXPECTED, BUDGET) if has_budget(_wanted(scene)) else _EXPECTED
    missing = [str(kind) for kind in expected if kind not in there]
    if missing and scene.gaps and not there:
        return Step("children", State.UNKNOWN, "they may not be read")
    if missing:
        summary = f"{', '.join(missing)} not made yet; there are: {words}"
        return Step("children", State.WORKING, summary, command=about.watch)
    details = tuple(_lost_claims(scene))
    state = State.STUCK if details else State.DONE
    claims = f"kubectl describe pvc -n {about.namespace}"
    return Step("children", state, words, details=details, command=claims if details else "")


def replicas_step(scene: Scene, about: About, *, is_planned: bool) -> Step:
    """What runs."""
    ready_is = condition(scene.seen.model, ConditionType.READY)
    replicas = [pod for pod in scene.seen.replicas if not is_deleting(pod)]
    details = tuple(line for pod in replicas[:MAX_REPLICAS] for line in _pod_lines(scene, pod))
    if len(replicas) > MAX_REPLICAS:
        details += (f"and {len(replicas) - MAX_REPLICAS} more",)
    if not replicas and not scene.seen.sets:
        what = "the StatefulSet" if is_planned else "a plan"
        return Step("replicas", State.WAITING, f"wait for {what}")
    ready = sum(pods.is_ready(pod) for pod in replicas)
    wanted = _wanted(scene)
    summary = f"{ready} of {wanted} ready"
    if wanted == 0:
        command = command_for(Reason.SCALED_TO_ZERO, about)
        return Step(
            "replicas", State.STUCK, "spec.replicas is 0", Reason.SCALED_TO_ZERO, command=command
        )
    if ready_is.reason == Reason.DEGRADED:
        # Without replicas: what they ran with was too small twice.
        summary = f"{summary}; {ready_is.message}"
        return Step("replicas", State.STUCK, summary, Reason.DEGRADED, details, about.edit)
    trouble = next(iter(_troubles(replicas, about)), None)
    if trouble is not None:
        reason, command = trouble
        return Step("replicas", State.STUCK, summary, reason, details, command)
    if ready < wanted or ready_is.reason == Reason.ROLLING_OUT:
        return _unfinished(scene, about, summary, details)
    return Step("replicas", State.DONE, summary, details=details)


def _wanted(scene: Scene) -> int:
    stored = (scene.seen.model.get("spec") or {}).get("replicas")
    return stored if isinstance(stored, int) else 1


def _unfinished(scene: Scene, about: About, summary: str, details: tuple[str, ...]) -> Step:
    """Nothing is wrong with a pod, and yet not all are as they should be."""
    ready = condition(scene.seen.model, ConditionType.READY)
    if ready.reason == Reason.ROLLING_OUT:
        summary += f"; {ready.message}"
        return Step("replicas", State.WORKING, summary, ready.reason, details, about.watch)
    reason = condition(scene.seen.model, ConditionType.AVAILABLE).reason
    why = "" if details else _why_no_pods(scene)
    if not why:
        return Step("replicas", State.WORKING, summary, reason, details, about.watch)
    sets = f"-n {about.namespace} -l {names.LABEL_MODEL}={about.name}"
    command = f"kubectl describe statefulset {sets}"
    return Step("replicas", State.STUCK, why, reason, command=command)


def warnings(scene: Scene, uid: str) -> Iterator[str]:
    """The newest warnings about an object, each message once."""
    told: list[str] = []
    for event in reversed(scene.events.get(uid, ())):
        words = f"{event.get('reason', '')}: {event.get('message', '')}".strip()
        if event.get("type") == "Warning" and words not in told:
            told.append(words)
    yield from told[:MAX_EVENTS]


def _pod_lines(scene: Scene, pod: Manifest) -> Iterator[str]:
    name = pod["metadata"]["name"]
    node = pod["spec"].get("nodeName")
    where = f" on {node}" if node else ""
    restarts = _restarts(pod)
    often = f", {restarts} restarts" if restarts > 1 else ", 1 restart" if restarts else ""
    old = ", with the plan before this one" if _is_outdated(scene, pod) else ""
    yield f"{name}{where}: {_pod_words(pod)}{often}{old}"
    if not pods.is_ready(pod):
        yield from (f"  event {words}" for words in warnings(scene, uid_of(pod)))


def _is_outdated(scene: Scene, pod: Manifest) -> bool:
    """Whether the set it belongs to would make it anew with another plan."""
    for stateful_set in scene.seen.sets:
        if is_controlled_by(pod, uid_of(stateful_set)):
            metadata = stateful_set["spec"]["template"].get("metadata") or {}
            wanted = (metadata.get("labels") or {}).get(names.LABEL_PLAN, "")
            return bool(wanted) and pods.plan_label(pod) != wanted
    return False


def _pod_words(pod: Manifest) -> str:
    if pods.is_ready(pod):
        return "ready"
    if (why := pods.unschedulable(pod)) is not None:
        return f"no node: {why}"
    if problem := pods.start_problem(pod, RUNTIME_CONTAINER):
        return problem
    short = pods.memory_shortage(pod, RUNTIME_CONTAINER)
    if short is not None:
        where = f"ran out of memory at a limit of {_limit(pod)}"
        where = "ran out of device memory" if short == "device" else where
        return f"{where}; the operator plans it once more with more room"
    if crash := pods.crash(pod, RUNTIME_CONTAINER):
        waiting = _waiting(pod)
        return f"{waiting}, last ended with {crash}" if waiting else f"ended with {crash}"
    phase = str(pod["status"].get("phase") or "Pending")
    waiting = _waiting(pod)
    return f"{phase}{f' ({waiting})' if waiting else ', not ready yet: it loads the model'}"


def _troubles(replicas: list[Manifest], about: About) -> Iterator[tuple[str, str]]:
    for pod in replicas:
        name = pod["metadata"]["name"]
        describe = f"kubectl describe pod {name} -n {about.namespace}"
        if pods.start_problem(pod, RUNTIME_CONTAINER):
            yield Reason.IMAGE_UNAVAILABLE, describe
        elif pods.is_ready(pod):
            continue
        elif pods.memory_shortage(pod, RUNTIME_CONTAINER) is not None:
            yield "OutOfMemory", describe
        elif pods.crash(pod, RUNTIME_CONTAINER):
            log = f"kubectl logs -n {about.namespace} {name} --previous --tail=50"
            yield Reason.CRASHING, log
        elif pods.unschedulable(pod) is not None:
            yield Reason.UNSCHEDULABLE, describe


def _why_no_pods(scene: Scene) -> str:
    """What the StatefulSet's controller says when it cannot make a pod."""
    for stateful_set in scene.seen.sets:
        for words in warnings(scene, uid_of(stateful_set)):
            return f"no pod is made: {words}"
    return ""


def _lost_claims(scene: Scene) -> Iterator[str]:
    for (kind, name), child in scene.seen.children.items():
        phase = (child.get("status") or {}).get("phase")
        if kind == CLAIM and phase == "Lost":
            yield f"claim {name} has lost its volume"


def _container(pod: Manifest) -> Manifest:
    for status in pod["status"].get("containerStatuses") or ():
        if status.get("name") == RUNTIME_CONTAINER:
            return dict(status)
    return {}


def _restarts(pod: Manifest) -> int:
    return int(_container(pod).get("restartCount") or 0)


def _waiting(pod: Manifest) -> str:
    waiting = (_container(pod).get("state") or {}).get("waiting") or {}
    return str(waiting.get("reason") or "")


def _limit(pod: Manifest) -> str:
    for container in pod["spec"].get("containers") or ():
        if container.get("name") == RUNTIME_CONTAINER:
            limits = (container.get("resources") or {}).get("limits") or {}
            text = str(limits.get("memory") or "")
            return format_bytes(int(text)) if text.isdigit() else text or "none"
    return "none"
