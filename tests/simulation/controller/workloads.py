"""The other controllers of a cluster, very small: Jobs run a pod, StatefulSets keep replicas.

One ``step`` moves every object by one state, so that the operator sees each state in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.controller_objects import fetched, fetched_for
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import (
    CLAIM,
    JOB,
    POD,
    STATEFULSET,
    Kind,
    Manifest,
    is_controlled_by,
    is_deleting,
    key_of,
    labels_of,
    uid_of,
)
from terrace_runtime.contract import FetchSpec, PruneOutcome, PruneSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.controller.fake_cluster import FakeCluster
    from terrace_runtime.contract import FetchOutcome


class Workloads:
    """Plays kube-controller-manager, kube-scheduler and kubelet."""

    def __init__(self, cluster: FakeCluster, now: Callable[[], str]) -> None:
        self._cluster = cluster
        self._now = now
        self.outcome: Callable[[], FetchOutcome | None] = fetched
        """Of a model file; None: it goes on."""
        self.extra_outcome: Callable[[FetchSpec], FetchOutcome | None] = fetched_for
        """Of a draft or an adapter."""
        self.pruned: Callable[[PruneSpec], PruneOutcome | None] = _all_freed
        self.is_serving: Callable[[Manifest], bool] = lambda _pod: True
        """Whether a replica becomes ready."""
        self.shortage: Callable[[Manifest], str] = lambda _pod: ""
        """Why a replica is killed instead, as the kubelet says; empty: it is not."""
        self.exit_code = 137
        self.num_killed = 0
        self.most_unready = 0
        """Most replicas of one set that were missing at once after they had all been ready."""

    def step(self) -> bool:
        """Move on; False when everything is as it should be."""
        moved = False
        for job in self._cluster.of_kind(JOB):
            moved |= self._step_job(job)
        for stateful_set in self._cluster.of_kind(STATEFULSET):
            if is_deleting(stateful_set):
                self._orphan(stateful_set)
                return True
            moved |= self._adopt(stateful_set) or self._step_set(stateful_set)
        return moved

    def _orphan(self, stateful_set: Manifest) -> None:
        """What the garbage collector does: one object loses its owner, at last the set goes."""
        for kind in (POD, CLAIM):
            for owned in self._cluster.of_kind(kind):
                owners = owned["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == uid_of(stateful_set) for owner in owners):
                    self._cluster.edit(
                        kind, key_of(owned), lambda live: live["metadata"].pop("ownerReferences")
                    )
                    return
        self._cluster.vanish(STATEFULSET, key_of(stateful_set))

    def _adopt(self, stateful_set: Manifest) -> bool:
        """A set takes pods and claims of its selector that have no owner."""
        selector = stateful_set["spec"]["selector"]["matchLabels"].items()
        reference = _reference(STATEFULSET, stateful_set)
        templates = stateful_set["spec"].get("volumeClaimTemplates") or ()
        prefixes = tuple(
            f"{template['metadata']['name']}-{key_of(stateful_set).name}-" for template in templates
        )
        for kind in (POD, CLAIM):
            for found in self._cluster.of_kind(kind):
                is_free = not found["metadata"].get("ownerReferences")
                is_ours = kind == POD or found["metadata"]["name"].startswith(prefixes)
                if is_free and is_ours and selector <= labels_of(found).items():
                    self._cluster.edit(
                        kind,
                        key_of(found),
                        lambda live: live["metadata"].update(ownerReferences=[reference]),
                    )
                    return True
        return False

    def _claim(self, stateful_set: Manifest, pod: str) -> None:
        """The claim of a new pod, which may be there from the pod before."""
        for template in stateful_set["spec"].get("volumeClaimTemplates") or ():
            namespace = key_of(stateful_set).namespace
            key = Key(namespace, f"{template['metadata']['name']}-{pod}")
            metadata = {
                "name": key.name,
                "namespace": namespace,
                "labels": dict(stateful_set["spec"]["selector"]["matchLabels"]),
                "ownerReferences": [_reference(STATEFULSET, stateful_set)],
            }
            if (CLAIM, key) not in self._cluster.objects:
                claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}
                self._cluster.put_new(CLAIM, {**claim, "spec": template["spec"]})

    def _step_job(self, job: Manifest) -> bool:
        if (job.get("status") or {}).get("conditions"):
            return False
        own = [pod for pod in self._cluster.of_kind(POD) if is_controlled_by(pod, uid_of(job))]
        if not own:
            self._add_pod(JOB, job, f"{job['metadata']['name']}-x{uid_of(job)}", "Running")
            return True
        pod = own[0]
        if pod["status"]["phase"] == "Running":
            outcome = self._outcome_of(job)
            if outcome is not None:
                self._end(pod, outcome)
            return outcome is not None
        word = "Complete" if pod["status"]["phase"] == "Succeeded" else "Failed"
        conditions = [{"type": word, "status": "True", "lastTransitionTime": self._now()}]
        self._cluster.edit(
            JOB, key_of(job), lambda live: live.update(status={"conditions": conditions})
        )
        return True

    def _outcome_of(self, job: Manifest) -> FetchOutcome | PruneOutcome | None:
        (variable,) = job["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == "TERRACE_PRUNE":
            return self.pruned(PruneSpec.model_validate_json(variable["value"]))
        spec = FetchSpec.model_validate_json(variable["value"])
        return self.outcome() if spec.role == "model" else self.extra_outcome(spec)

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
                self._claim(stateful_set, name)
                self._add_pod(STATEFULSET, stateful_set, name, "Pending")
                moved = True
            elif own[name]["status"]["phase"] != "Pending":
                continue
            elif why := self.shortage(own[name]):
                self._kill(own[name], why)
                moved = True
            elif self.is_serving(own[name]):
                self._make_ready(own[name])
                moved = True
        return moved

    def _add_pod(self, kind: Kind, owner: Manifest, name: str, phase: str) -> None:
        template = owner["spec"]["template"]
        self._cluster.put_new(
            POD,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": owner["metadata"]["namespace"],
                    "labels": dict(template["metadata"]["labels"]),
                    "ownerReferences": [_reference(kind, owner)],
                },
                "spec": {**template["spec"], "nodeName": "node-a"},
                "status": {"phase": phase, "podIP": "10.0.0.1"},
            },
        )

    def _end(self, pod: Manifest, outcome: FetchOutcome | PruneOutcome) -> None:
        is_good = outcome.failure is None
        ended = {
            "exitCode": 0 if is_good else 1,
            "reason": "Completed" if is_good else "Error",
            "message": outcome.model_dump_json(),
            "finishedAt": self._now(),
        }
        status = {
            "phase": "Succeeded" if is_good else "Failed",
            "containerStatuses": [{"name": "fetch", "state": {"terminated": ended}}],
        }
        self._cluster.edit(POD, key_of(pod), lambda live: live.update(status=status))

    def _kill(self, pod: Manifest, why: str) -> None:
        """It ended, and waits for its restart."""
        self.num_killed += 1
        ended = {"exitCode": self.exit_code, "reason": why, "finishedAt": self._now()}
        state = {"waiting": {"reason": "CrashLoopBackOff"}}
        container = {"name": "runtime", "ready": False, "state": state}
        status = {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": [{**container, "lastState": {"terminated": ended}}],
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


def _all_freed(spec: PruneSpec) -> PruneOutcome:
    return PruneOutcome(freed=spec.digests)


def _reference(kind: Kind, owner: Manifest) -> Manifest:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
    }
