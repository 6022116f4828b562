"""The other controllers of a cluster, very small: Jobs run a pod, StatefulSets keep replicas.

One ``step`` moves every object by one state, so that the operator sees each state in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.controller_objects import fetched
from terrace.api import names
from terrace.controller.kinds import (
    JOB,
    POD,
    STATEFULSET,
    Kind,
    Manifest,
    is_controlled_by,
    key_of,
    labels_of,
    uid_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.controller.fake_cluster import FakeCluster
    from terrace.api.names import Key
    from terrace_runtime.contract import FetchOutcome


class Workloads:
    """Plays kube-controller-manager, kube-scheduler and kubelet."""

    def __init__(self, cluster: FakeCluster, now: Callable[[], str]) -> None:
        self._cluster = cluster
        self._now = now
        self.outcome: Callable[[], FetchOutcome] = fetched
        self.is_serving: Callable[[Manifest], bool] = lambda _pod: True
        """Whether a replica becomes ready."""
        self.most_unready = 0
        """Most replicas of one set that were missing at once after they had all been ready."""

    def step(self) -> bool:
        """Move on; False when everything is as it should be."""
        moved = False
        for job in self._cluster.of_kind(JOB):
            moved |= self._step_job(job)
        for stateful_set in self._cluster.of_kind(STATEFULSET):
            moved |= self._step_set(stateful_set)
        return moved

    def _step_job(self, job: Manifest) -> bool:
        if (job.get("status") or {}).get("conditions"):
            return False
        own = [pod for pod in self._cluster.of_kind(POD) if is_controlled_by(pod, uid_of(job))]
        if not own:
            self._add_pod(JOB, job, f"{job['metadata']['name']}-x{uid_of(job)}", "Running")
            return True
        pod = own[0]
        if pod["status"]["phase"] == "Running":
            outcome = self.outcome()
            self._end(pod, outcome)
            return True
        word = "Complete" if pod["status"]["phase"] == "Succeeded" else "Failed"
        conditions = [{"type": word, "status": "True", "lastTransitionTime": self._now()}]
        self._cluster.edit(
            JOB, key_of(job), lambda live: live.update(status={"conditions": conditions})
        )
        return True

    def _step_set(self, stateful_set: Manifest) -> bool:
        own = {
            pod["metadata"]["name"]: pod
            for pod in self._cluster.of_kind(POD)
            if is_controlled_by(pod, uid_of(stateful_set))
        }
        wanted = [
            f"{stateful_set['metadata']['name']}-{ordinal}"
            for ordinal in range(stateful_set["spec"]["replicas"])
        ]
        moved = False
        for name in sorted(own.keys() - set(wanted)):
            self._cluster.vanish(POD, key_of(own[name]))
            moved = True
        for name in wanted:
            if name not in own:
                self._add_pod(STATEFULSET, stateful_set, name, "Pending")
                moved = True
            elif own[name]["status"]["phase"] == "Pending" and self.is_serving(own[name]):
                self._make_ready(own[name])
                moved = True
        return moved

    def _add_pod(self, kind: Kind, owner: Manifest, name: str, phase: str) -> None:
        template = owner["spec"]["template"]
        reference = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "name": owner["metadata"]["name"],
            "uid": uid_of(owner),
            "controller": True,
        }
        self._cluster.put_new(
            POD,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": owner["metadata"]["namespace"],
                    "labels": dict(template["metadata"]["labels"]),
                    "ownerReferences": [reference],
                },
                "spec": {**template["spec"], "nodeName": "node-a"},
                "status": {"phase": phase, "podIP": "10.0.0.1"},
            },
        )

    def _end(self, pod: Manifest, outcome: FetchOutcome) -> None:
        ended = {
            "exitCode": 0 if outcome.facts else 1,
            "reason": "Completed" if outcome.facts else "Error",
            "message": outcome.model_dump_json(),
            "finishedAt": self._now(),
        }
        status = {
            "phase": "Succeeded" if outcome.facts else "Failed",
            "containerStatuses": [{"name": "fetch", "state": {"terminated": ended}}],
        }
        self._cluster.edit(POD, key_of(pod), lambda live: live.update(status=status))

    def _make_ready(self, pod: Manifest) -> None:
        status = {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "runtime", "ready": True, "state": {"running": {}}}],
        }
        self._cluster.edit(POD, key_of(pod), lambda live: live.update(status=status))

    def ready_replicas(self, model: Key) -> int:
        """Replicas that answer now."""
        return sum(
            pod["metadata"]["namespace"] == model.namespace
            and labels_of(pod).get(names.LABEL_MODEL) == model.name
            and bool(pod["status"].get("conditions"))
            for pod in self._cluster.of_kind(POD)
        )
