"""Situations that a user of ``terrace explain`` may be in: a cluster's objects for each.

Owns: one builder per situation and the list of them. Does not own: the objects' parts
(``cli_cluster.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.cli_cluster import (
    CACHED,
    CALM,
    JOB_UID,
    PLACED,
    SET_UID,
    children,
    fetch_pod,
    known,
    model,
    nodes,
    parts,
    plan_block,
    pool,
    replica,
    running,
    warning,
)
from support.controller_objects import node
from terrace.api import names
from terrace.controller.kinds import STATEFULSET

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace.controller.kinds import Kind, Manifest

    Objects = list[tuple[Kind, Manifest]]

READY = ("True", "Ready", "1 of 1 replicas ready")
AVAILABLE = ("True", "ReplicasReady", "1 of 1 replicas ready")


def no(reason: str, message: str) -> tuple[str, str, str]:
    return "False", reason, message


def ready() -> Objects:
    told = {"Ready": READY, "Stalled": CALM, "ModelCached": CACHED, "Placed": PLACED}
    objects = [model({**told, "Available": AVAILABLE}, **running()), pool(), *nodes(), *parts()]
    return [*objects, *children(), replica()]


def not_ready(reason: str, message: str, *pods: tuple[Kind, Manifest]) -> Objects:
    why = no(reason, message)
    told = {"Ready": why, "Stalled": CALM, "ModelCached": CACHED, "Placed": PLACED}
    objects = [model({**told, "Available": why}, **running()), pool(), *nodes(), *parts()]
    return [*objects, *children(), *pods]


def downloading() -> Objects:
    why = no("Fetching", "the fetch Job reads the model file")
    told = {"Ready": why, "Stalled": CALM, "ModelCached": why}
    told["Placed"] = no("WaitingForFacts", "a plan needs the facts of the model file")
    progress = {
        "stage": "download",
        "doneBytes": 3 << 30,
        "totalBytes": 5 << 30,
        "bytesPerSecond": 100 << 20,
        "secondsLeft": 20,
    }
    objects = [model(told, download=progress, servedNames=["demo"]), pool(), *nodes(), *parts()]
    return [*objects, children()[0], fetch_pod()]


def fetch_failed() -> Objects:
    message = "no GGUF here, only model.safetensors; convert it first"
    why = no("UnsupportedFormat", f"{message}; mend the source, then delete the fetch Job")
    told = {"Ready": why, "Stalled": ("True", *why[1:]), "ModelCached": why}
    told["Placed"] = no("WaitingForFacts", "a plan needs the facts of the model file")
    objects = [model(told, servedNames=["demo"]), pool(), *nodes(), *parts(), children()[0]]
    return [*objects, warning(JOB_UID, "BackoffLimitExceeded", "Job has failed")]


def fetch_without_volume() -> Objects:
    why = no("FetchPending", "pod has unbound immediate PersistentVolumeClaims")
    told = {"Ready": why, "Stalled": CALM, "ModelCached": why}
    told["Placed"] = no("WaitingForFacts", "a plan needs the facts of the model file")
    objects = [model(told, servedNames=["demo"]), pool(), *nodes(), *parts(), children()[0]]
    pod = fetch_pod(phase="Pending")
    return [*objects, pod, warning("uid-fetch-pod", "FailedScheduling", "0/1 nodes are available")]


def no_node_fits() -> Objects:
    why = no("NoNodeFits", "flavor cpu: 1.0 TiB are missing; it takes a larger node")
    told = {"Ready": why, "Stalled": CALM, "ModelCached": CACHED, "Placed": why}
    large = known(weights=1 << 40)
    objects = [model(told, model=large, servedNames=["demo"])]
    small = node("node-b", memory="8Gi", ready=False, labels={"flavor": "big"})
    return [*objects, pool(flavors=("cpu", "big")), *nodes(node(), small), *parts()]


def pool_gone() -> Objects:
    why = no("PoolNotFound", "InferencePool 'default' is not in this namespace: create it")
    told = {"Ready": why, "Stalled": CALM, "Placed": why}
    told["ModelCached"] = ("Unknown", "FetchPending", "waits for the spec and the pool")
    return [model(told, servedNames=["demo"]), *nodes(), *parts()]


def unschedulable() -> Objects:
    pod = replica(ready=False, bound=False)
    message = "0 of 1 replicas ready; demo-cpu-0: 0/1 nodes are available"
    event = warning("uid-pod-0", "FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.")
    return not_ready("Unschedulable", message, pod, event)


def crash_loop() -> Objects:
    ended = {"exitCode": 13, "reason": "Error", "message": "llama.cpp: cannot load the model"}
    waits = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod = replica(ready=False, restartCount=5, state=waits, lastState={"terminated": ended})
    event = warning("uid-pod-0", "BackOff", "Back-off restarting failed container runtime")
    return not_ready("Crashing", "0 of 1 replicas ready", pod, event)


def out_of_memory() -> Objects:
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    waits = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod = replica(ready=False, restartCount=1, state=waits, lastState={"terminated": ended})
    return not_ready("Crashing", "0 of 1 replicas ready", pod)


def image_missing() -> Objects:
    waits = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    return not_ready("ImageUnavailable", "no image", replica(ready=False, state=waits))


def quota() -> Objects:
    event = warning(SET_UID, "FailedCreate", "pods is forbidden: exceeded quota: small")
    return not_ready("ReplicasStarting", "0 of 1 replicas ready", event)


def name_conflict() -> Objects:
    message = "'demo' is served by other/demo: choose another of spec.servedNames"
    told = {"Ready": READY, "Stalled": ("True", "NameConflict", message), "ModelCached": CACHED}
    told |= {"Placed": PLACED, "Available": AVAILABLE}
    objects = [model(told, **running(servedNames=[])), pool(), *nodes(), *parts()]
    return [*objects, *children(), replica()]


def foreign_object() -> Objects:
    why = no("ForeignObject", "Service default/demo exists and is not ours: rename one")
    told = {"Ready": why, "Stalled": ("True", *why[1:]), "ModelCached": CACHED, "Placed": PLACED}
    return [model(told, **running()), pool(), *nodes(), *parts(), children()[0]]


def preempted() -> Objects:
    why = no("Preempted", "flavor cpu went to default/urgent of priority 100")
    told = {"Ready": why, "Stalled": CALM, "ModelCached": CACHED, "Placed": why}
    return [model(told, model=known(), servedNames=["demo"]), pool(), *nodes(), *parts()]


def degraded() -> Objects:
    message = "killed for its memory twice; spec.context.length 1,024 would fit"
    return not_ready("Degraded", message)


def pending_plan() -> Objects:
    waits = {"digest": "f" * 64, "reason": "context_tokens 2048 -> 8192"}
    told = {"Ready": READY, "Stalled": CALM, "ModelCached": CACHED, "Placed": PLACED}
    status = running(plan=plan_block(pending=waits))
    objects = [model({**told, "Available": AVAILABLE}, **status), pool(), *nodes(), *parts()]
    return [*objects, *children(inputs="0" * 64), replica()]


def operator_down() -> Objects:
    kind, found = model({})
    found.pop("status")
    return [(kind, found), pool(), *nodes()]


def scaled_to_zero() -> Objects:
    why = ("ScaledToZero", "spec.replicas is 0")
    told = {"Ready": ("True", *why), "Stalled": CALM, "ModelCached": CACHED, "Placed": PLACED}
    kind, found = model({**told, "Available": no(*why)}, **running())
    found["spec"]["replicas"] = 0
    return [(kind, found), pool(), *nodes(), *parts(), *children()]


def starting() -> Objects:
    pod = replica(ready=False, state={"running": {}})
    return not_ready("ReplicasStarting", "0 of 1 replicas ready", pod)


def rolling_out() -> Objects:
    told = {
        "Ready": no("RollingOut", "0 of 1 replicas have the new plan"),
        "Stalled": CALM,
        "ModelCached": CACHED,
        "Placed": PLACED,
        "Available": AVAILABLE,
    }
    objects = [model(told, **running()), pool(), *nodes(), *parts()]
    made = children()
    (stateful_set,) = (child for kind, child in made if kind == STATEFULSET)
    stateful_set["spec"]["template"]["metadata"] = {"labels": {names.LABEL_PLAN: "new"}}
    return [*objects, *made, replica()]


def spec_changed() -> Objects:
    kind, found = (objects := ready())[0]
    found["metadata"]["generation"] = 2
    return [(kind, found), *objects[1:]]


SITUATIONS: dict[str, Callable[[], Objects]] = {
    each.__name__: each
    for each in (
        ready,
        downloading,
        fetch_failed,
        fetch_without_volume,
        no_node_fits,
        pool_gone,
        unschedulable,
        crash_loop,
        out_of_memory,
        image_missing,
        quota,
        name_conflict,
        foreign_object,
        preempted,
        degraded,
        pending_plan,
        operator_down,
        scaled_to_zero,
        starting,
        rolling_out,
        spec_changed,
    )
}
