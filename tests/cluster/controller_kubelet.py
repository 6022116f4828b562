"""Plays nodes for the tests of the controller: pods run, become ready, fail and go as told.

Everything else in these tests is real: API server, scheduler, Job, StatefulSet and garbage
controllers. Volumes are PersistentVolumes made for each claim, bound by the real PV controller.
"""

from __future__ import annotations

import contextlib
import threading
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Self

from cluster.controller_api import Api, ApiError, Manifest
from support.controller_objects import fetched, fetched_for, node
from terrace.api import names
from terrace.controller.kinds import CLAIM, NODE, POD, SECRET, Kind, is_deleting, labels_of
from terrace_runtime.contract import (
    EXIT_PERMANENT,
    FetchOutcome,
    FetchSpec,
    PruneOutcome,
    PruneSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VOLUME = Kind("v1", "PersistentVolume", "persistentvolumes", namespaced=False)
SELECTED_NODE = "volume.kubernetes.io/selected-node"
PERIOD_S = 0.1
HEARTBEAT_S = 8.0


class Kubelet:
    """Runs in a thread; ``outcome`` and ``serve`` may be changed while it runs."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._nodes: dict[str, Manifest] = {}
        self._beat_at = 0.0
        self.outcome: Callable[[str], FetchOutcome | None] = lambda _model: fetched()
        """Model name -> how its fetch ends; None: it goes on running."""
        self.extra_outcome: Callable[[FetchSpec], FetchOutcome | None] = fetched_for
        """The same of a draft or an adapter."""
        self.pruned: dict[str, list[str]] = {}
        """Uid of a prune Job's pod -> the digests that it was told to delete."""
        self.serve: Callable[[Manifest], Manifest | None] = lambda _pod: None
        """Replica -> a status instead of ready."""
        self.started: list[str] = []
        """Uids of the pods that were started, in order."""
        self.problems: list[str] = []

    def add_node(self, name: str, **values: Any) -> None:
        """A node joins."""
        wanted = node(name, **values)
        self._nodes[name] = wanted["status"]
        with contextlib.suppress(ApiError):
            self._api.create(NODE, wanted)
        self._heartbeat(name)

    def remove_node(self, name: str) -> None:
        """A node goes."""
        self._nodes.pop(name, None)
        self._api.delete(NODE, "", name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for name in self._nodes:
            self._api.delete(NODE, "", name)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self._pass()
            except (ApiError, OSError, HTTPException) as error:
                self.problems.append(repr(error))
        self._api.close()

    def _pass(self) -> None:
        if time.monotonic() - self._beat_at > HEARTBEAT_S:
            self._beat_at = time.monotonic()
            for name in list(self._nodes):
                self._heartbeat(name)
        for claim in self._api.items(CLAIM):
            chosen = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
            if chosen and (claim.get("status") or {}).get("phase") == "Pending":
                self._provide(claim)
        for pod in self._api.items(POD, selector=f"{names.MANAGED_BY}={names.MANAGED_BY_VALUE}"):
            with contextlib.suppress(ApiError):  # Gone, or changed a moment ago: next pass.
                self._play(pod)

    def _play(self, pod: Manifest) -> None:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        if is_deleting(pod):
            self._api.delete(POD, namespace, name, gracePeriodSeconds=0)
            return
        phase = (pod.get("status") or {}).get("phase")
        if not pod["spec"].get("nodeName") or phase in ("Succeeded", "Failed"):
            return
        if labels_of(pod).get(names.COMPONENT) in ("fetch", "prune"):
            if self._waits_for_a_secret(pod):
                return
            status = _work_status(self._outcome_of(pod))
        else:
            status = self.serve(pod) or running(pod, ready=True)
        if phase == status["phase"] and _container(pod) == _container({"status": status}):
            return
        if pod["metadata"]["uid"] not in self.started:
            self.started.append(pod["metadata"]["uid"])
        self._api.patch(POD, namespace, name, {"status": status}, "/status")

    def _waits_for_a_secret(self, pod: Manifest) -> bool:
        """A kubelet starts no container before its volumes are there, and says so in events."""
        secrets = [v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v]
        namespace = pod["metadata"]["namespace"]
        return any(self._api.get(SECRET, namespace, name) is None for name in secrets)

    def _outcome_of(self, pod: Manifest) -> FetchOutcome | PruneOutcome | None:
        (variable,) = pod["spec"]["containers"][0]["env"]
        if variable["name"] == "TERRACE_PRUNE":
            spec = PruneSpec.model_validate_json(variable["value"])
            self.pruned[pod["metadata"]["uid"]] = list(spec.digests)
            return PruneOutcome(freed=spec.digests)
        fetch = FetchSpec.model_validate_json(variable["value"])
        if fetch.role != "model":
            return self.extra_outcome(fetch)
        return self.outcome(labels_of(pod)[names.LABEL_MODEL])

    def _provide(self, claim: Manifest) -> None:
        key = claim["metadata"]
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"pv-{key['uid']}"},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": claim["spec"]["accessModes"],
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": claim["spec"].get("storageClassName", ""),
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": key["namespace"], "name": key["name"], "uid": key["uid"]},
            },
        }
        with contextlib.suppress(ApiError):
            self._api.create(VOLUME, volume)

    def _heartbeat(self, name: str) -> None:
        status = self._nodes.get(name)
        if status is None:
            return  # Gone meanwhile.
        beat = {"lastHeartbeatTime": _now(), "reason": "Played", "message": ""}
        ready = [{**condition, **beat} for condition in status["conditions"]]
        with contextlib.suppress(ApiError):
            body = {"status": {**status, "conditions": ready}}
            self._api.patch(NODE, "", name, body, "/status")
            self._api.patch(NODE, "", name, {"spec": {"taints": None}})


def _work_status(outcome: FetchOutcome | PruneOutcome | None) -> Manifest:
    if outcome is None:
        return _status("Running", "fetch", {"running": {"startedAt": _now()}}, ready=True)
    failure = outcome.failure
    code = 0 if failure is None else (EXIT_PERMANENT if failure.permanent else 1)
    ended = {
        "exitCode": code,
        "reason": "Error" if code else "Completed",
        "message": outcome.model_dump_json(exclude_defaults=True),
        "startedAt": _now(),
        "finishedAt": _now(),
    }
    phase = "Failed" if code else "Succeeded"
    return _status(phase, "fetch", {"terminated": ended}, ready=False)


def running(_pod: Manifest, *, ready: bool) -> Manifest:
    """A replica that runs."""
    return _status("Running", "runtime", {"running": {"startedAt": _now()}}, ready=ready)


def crashed(_pod: Manifest, code: int, message: str) -> Manifest:
    """A replica whose container ended and waits for its restart."""
    ended = {
        "exitCode": code,
        "reason": "Error",
        "message": message,
        "startedAt": _now(),
        "finishedAt": _now(),
    }
    status = _status("Running", "runtime", {"waiting": {"reason": "CrashLoopBackOff"}}, ready=False)
    status["containerStatuses"][0]["lastState"] = {"terminated": ended}
    return status


def _status(phase: str, container: str, state: Manifest, *, ready: bool) -> Manifest:
    word = "True" if ready else "False"
    return {
        "phase": phase,
        "podIP": "127.200.0.1",
        "podIPs": [{"ip": "127.200.0.1"}],
        "startTime": _now(),
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": _now()},
            {"type": "Ready", "status": word, "lastTransitionTime": _now()},
            {"type": "ContainersReady", "status": word, "lastTransitionTime": _now()},
        ],
        "containerStatuses": [
            {
                "name": container,
                "image": "",
                "imageID": "",
                "ready": ready,
                "restartCount": 0,
                "state": state,
            }
        ],
    }


def _container(pod: Manifest) -> tuple[Any, ...]:
    """What counts as the same status: times aside."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    state = statuses[0].get("state") or {}
    last = (statuses[0].get("lastState") or {}).get("terminated") or {}
    return statuses[0].get("ready"), sorted(state), last.get("exitCode"), last.get("message")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
