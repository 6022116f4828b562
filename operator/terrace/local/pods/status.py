"""A pod's status from the views of its containers. Pure.

Owns: phase, conditions, containerStatuses, and reading an earlier status back after a restart of
the agent. Does not own: writing it anywhere. Next: ``pod.py``; the host node patches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.local.pods.states import (
    SIGKILL_EXIT,
    Running,
    State,
    Terminated,
    View,
    Waiting,
    parse_timestamp,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from terrace.local.pods.spec import Json, Pod

_LOST_MESSAGE = "the host node's agent ended, and its pods' processes with it"


@dataclass(frozen=True)
class Observed:
    """Everything a status is made of, beside the manifest."""

    init: Sequence[View]
    main: Sequence[View]
    is_initialized: bool
    pod_ip: str
    host_ip: str
    started_at: datetime
    failure: tuple[str, str] | None = None
    """Reason and message of a pod that failed as a whole (DeadlineExceeded, InvalidPod)."""


def phase(pod: Pod, observed: Observed) -> str:
    """Pending, Running, Succeeded or Failed, by kubelet's rules."""
    if observed.failure and all(_is_over(view) for view in observed.main):
        return "Failed"
    sidecars = {container.name for container in pod.init_containers if container.is_sidecar}
    lost = [
        view
        for view in observed.init
        if view.is_final and not _succeeded(view) and view.name not in sidecars
    ]
    if lost and not any(isinstance(view.state, Running) for view in observed.main):
        return "Failed"
    if observed.main and all(view.is_final for view in observed.main):
        return "Succeeded" if all(_succeeded(view) for view in observed.main) else "Failed"
    if not observed.is_initialized or all(
        isinstance(view.state, Waiting) and view.last is None for view in observed.main
    ):
        return "Pending"
    return "Running"


def render(pod: Pod, observed: Observed, earlier: Iterable[Json], moment: datetime) -> Json:
    """The whole status; conditions that hold as in ``earlier`` keep their transition times."""
    status: Json = {
        "phase": phase(pod, observed),
        "conditions": _conditions(pod, observed, list(earlier), moment),
        "hostIP": observed.host_ip,
        "hostIPs": [{"ip": observed.host_ip}],
        "startTime": timestamp(observed.started_at),
        "qosClass": quality_of_service(pod),
        "initContainerStatuses": [container_status(view) for view in observed.init],
        "containerStatuses": [container_status(view) for view in observed.main],
    }
    generation = pod.manifest["metadata"].get("generation")
    if generation:
        status["observedGeneration"] = generation
    if observed.pod_ip:
        status |= {"podIP": observed.pod_ip, "podIPs": [{"ip": observed.pod_ip}]}
    if observed.failure:
        status |= dict(zip(("reason", "message"), observed.failure, strict=True))
    return status


def container_status(view: View) -> Json:
    """One entry of containerStatuses."""
    return {
        "name": view.name,
        "image": view.image,
        "imageID": f"host://{view.image}" if view.container_id else "",
        "containerID": view.container_id,
        "state": _state(view.state),
        "lastState": _state(view.last) if view.last else {},
        "restartCount": view.num_restarts,
        "ready": view.is_ready,
        "started": view.is_started,
    }


def earlier_view(entry: Json, image: str, moment: datetime) -> View:
    """A container as an earlier agent left it: what ran then was ended with that agent."""
    state, last = entry.get("state") or {}, entry.get("lastState") or {}
    ended = _terminated(state) or _terminated(last)
    num_restarts = int(entry.get("restartCount") or 0)
    if "running" in state:
        started = parse_timestamp(state["running"]["startedAt"])
        ended = Terminated(
            SIGKILL_EXIT, "Error", started, moment, _LOST_MESSAGE, entry.get("containerID") or ""
        )
    waits = "terminated" not in state and "running" not in state
    return View(
        name=entry["name"],
        image=image,
        state=Waiting("ContainerCreating") if waits or ended is None else ended,
        last=ended if waits else _terminated(last),
        num_restarts=num_restarts,
        container_id=entry.get("containerID") or "",
    )


def quality_of_service(pod: Pod) -> str:
    """BestEffort, Burstable or Guaranteed, as the API defines them."""
    wanted = [
        (container.requests.get(name), container.limits.get(name))
        for container in pod.all_containers
        for name in ("cpu", "memory")
    ]
    if not any(request or limit for request, limit in wanted):
        return "BestEffort"
    if all(limit and (request or limit) == limit for request, limit in wanted):
        return "Guaranteed"
    return "Burstable"


def _succeeded(view: View) -> bool:
    return isinstance(view.state, Terminated) and view.state.is_success


def _is_over(view: View) -> bool:
    return view.is_final or not isinstance(view.state, Running)


def _conditions(pod: Pod, observed: Observed, earlier: list[Json], moment: datetime) -> list[Json]:
    over = phase(pod, observed) in {"Succeeded", "Failed"}
    unready = [view.name for view in observed.main if not view.is_ready]
    gates = [gate["conditionType"] for gate in pod.manifest["spec"].get("readinessGates") or ()]
    held = {entry["type"] for entry in earlier if entry.get("status") == "True"}
    waiting_gates = [gate for gate in gates if gate not in held]
    pending = [
        view.name
        for view in observed.init
        if not (_succeeded(view) or (view.is_started and isinstance(view.state, Running)))
    ]
    ready = not unready and not over
    unready_why = _why("PodCompleted" if over else "ContainersNotReady", "unready", unready)
    initialized_why = _why("ContainersNotInitialized", "incomplete", pending)
    gate_why = ("ReadinessGatesNotReady", f"conditions not True: {', '.join(waiting_gates)}")
    ready_why = gate_why if ready else unready_why
    is_ready = ready and not waiting_gates
    return [
        _condition("PodScheduled", ("", ""), earlier, moment, holds=True),
        _condition("Initialized", initialized_why, earlier, moment, holds=observed.is_initialized),
        _condition("ContainersReady", unready_why, earlier, moment, holds=ready),
        _condition("Ready", ready_why, earlier, moment, holds=is_ready),
    ]


def _why(reason: str, what: str, names: list[str]) -> tuple[str, str]:
    message = f"containers with {what} status: [{' '.join(names)}]" if names else ""
    return reason, message


def _condition(
    kind: str, why: tuple[str, str], earlier: list[Json], moment: datetime, *, holds: bool
) -> Json:
    entry: Json = {"type": kind, "status": "True" if holds else "False"}
    if not holds:
        entry |= {"reason": why[0], "message": why[1]}
    before = next((old for old in earlier if old.get("type") == kind), {})
    same = before.get("status") == entry["status"] and before.get("lastTransitionTime")
    entry["lastTransitionTime"] = before["lastTransitionTime"] if same else timestamp(moment)
    return entry


def _state(state: State) -> Json:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Running(started_at):
            return {"running": {"startedAt": timestamp(started_at)}}
        case Terminated():
            rendered: Json = {
                "exitCode": state.exit_code,
                "reason": state.reason,
                "startedAt": timestamp(state.started_at),
                "finishedAt": timestamp(state.finished_at),
                "containerID": state.container_id,
            }
            return {"terminated": rendered | ({"message": state.message} if state.message else {})}


def _terminated(state: Json) -> Terminated | None:
    entry = state.get("terminated")
    if not entry:
        return None
    return Terminated(
        exit_code=int(entry.get("exitCode") or 0),
        reason=entry.get("reason") or "",
        started_at=parse_timestamp(entry["startedAt"]),
        finished_at=parse_timestamp(entry["finishedAt"]),
        message=entry.get("message") or "",
        container_id=entry.get("containerID") or "",
    )
