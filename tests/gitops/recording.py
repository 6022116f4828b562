"""Drives pools and models through what they can be, on a real control plane, and keeps them.

Owns: the states and how each comes about. Does not own: what evaluators say of them
(``test_health.py``). API server, scheduler, controllers and operator are real; the kubelet is
played.
"""

from __future__ import annotations

import subprocess
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cluster.controller_api import ApiError, Manifest, eventually
from cluster.controller_kubelet import crashed, running
from support.controller_objects import condition, fetched, not_fetched
from terrace.api import names
from terrace.controller.kinds import CLAIM, JOB, MODEL, POD, POOL, SERVICE, Kind, labels_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.controller_operator import Operator
    from cluster.controller_world import World

CRD = Kind(
    "apiextensions.k8s.io/v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)
HOLD = {"metadata": {"finalizers": ["example.com/hold"]}}
RELEASE = {"metadata": {"finalizers": None}}
WAIT_S = 90.0


class Recorder:
    """One namespace in which every object plays one part."""

    def __init__(self, world: World) -> None:
        self.seen: dict[str, Manifest] = {}
        """State -> the object as the API server had it."""
        self._world = world
        self._api = world.api
        self._plays: dict[str, Callable[[Manifest], Manifest | None]] = {}
        self._outcomes: dict[str, Any] = {}
        world.kubelet.serve = self._serve
        world.kubelet.outcome = lambda name: self._outcomes.get(name, fetched())

    def record(self) -> dict[str, Manifest]:
        """All states; nothing of them is left when this returns."""
        self._created()
        operator = self._world.operators.start("recorded-0")
        self._first_rollout()
        self._stuck()
        self._made_anew()
        self._changed(operator)
        operator = self._world.operators.start("recorded-1")
        self._invalid()
        stop(operator)
        self._clear()
        return self.seen

    def _created(self) -> None:
        self._world.add_pool("fresh")
        self._world.add_model("fresh", pool="fresh")
        self._keep("pool: just created", POOL, "fresh")
        self._keep("just created", MODEL, "fresh")

    def _first_rollout(self) -> None:
        self._world.add_pool()
        self._world.add_pool("deserted", flavors=[{"name": "cpu", "nodeSelector": {"no": "where"}}])
        self._outcomes["loading"] = None
        self._plays["starting"] = lambda pod: running(pod, ready=False)
        self._plays["crashing"] = lambda pod: crashed(pod, 13, "llama.cpp: cannot load the model")
        self._plays["half"] = self._second_crashes
        self._plays["imageless"] = _no_image
        for name in ("loading", "starting", "crashing", "imageless"):
            self._world.add_model(name)
        self._world.add_model("half", replicas=2)
        self._world.add_model("zero", replicas=0)
        for name in ("ready", "orphan", "unseen", "fewer", "deleted", "drained", "anew"):
            pool = "orphans" if name == "orphan" else "default"
            self._world.add_model(name, pool=pool)
        self._world.add_pool("orphans")
        self._world.add_pool("anew")
        self._world.add_model("rolling", replicas=2)
        self._keep("pool: ready", POOL, "default", ready="Ready", status="True")
        self._keep("pool: no node", POOL, "deserted", ready="NoNodeFits")
        self._keep("downloading", MODEL, "loading", ready="Fetching")
        self._keep("starting", MODEL, "starting", ready="ReplicasStarting")
        self._keep("crashing", MODEL, "crashing", ready="Crashing")
        self._keep("image unavailable", MODEL, "imageless", ready="ImageUnavailable")
        self._keep("one of two crashes", MODEL, "half", ready="Crashing", available="True")
        self._keep("scaled to 0 from the start", MODEL, "zero", ready="ScaledToZero", status="True")
        self._keep("ready", MODEL, "ready", ready="Ready", status="True")

    def _stuck(self) -> None:
        service = {"ports": [{"port": 80}], "selector": {"app": "mine"}}
        head = {"namespace": self._world.namespace}
        self._api.create(SERVICE, {"metadata": {"name": "foreign", **head}, "spec": service})
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        name = names.model_cache_claim_name("squatted")
        self._api.create(CLAIM, {"metadata": {"name": name, **head}, "spec": claim})
        self._world.add_pool("squatted")
        self._outcomes["huge"] = fetched(weights=4 * 10**12)
        self._outcomes["broken"] = not_fetched("InvalidModel", "no GGUF magic", permanent=True)
        self._outcomes["flaky"] = not_fetched("DownloadFailed", "reset", permanent=False)
        self._plays["small"] = _killed
        for model in ("huge", "broken", "flaky", "foreign", "small"):
            self._world.add_model(model)
        self._world.add_model("poolless", pool="nowhere")
        self._wait(MODEL, "orphan", ready="Ready", status="True")
        self._api.delete(POOL, self._world.namespace, "orphans")
        self._younger_than("ready")
        self._world.add_model("usurper", servedNames=["ready"])
        self._keep("pool: foreign claim", POOL, "squatted", ready="ForeignObject")
        self._keep("no node fits", MODEL, "huge", ready="NoNodeFits")
        self._keep("bad file", MODEL, "broken", ready="InvalidModel")
        self._keep("source fails for now", MODEL, "flaky", ready="DownloadFailed")
        self._keep("foreign service", MODEL, "foreign", ready="ForeignObject")
        self._keep("pool not found", MODEL, "poolless", ready="PoolNotFound")
        self._keep("pool gone", MODEL, "orphan", ready="PoolNotFound", available="True")
        self._keep("name taken", MODEL, "usurper", ready="Ready", status="True", stalled="True")
        self._keep("plan given up", MODEL, "small", ready="Degraded", stalled="True")

    def _made_anew(self) -> None:
        """Deleted and applied again before the garbage collector has come by."""
        self._wait(MODEL, "anew", ready="Ready", status="True")
        self._wait(POOL, "anew", ready="Ready", status="True")
        held = [
            (JOB, self._world.namespace, names.fetch_job_name("anew")),
            (CLAIM, self._world.namespace, names.model_cache_claim_name("anew")),
        ]
        for key in held:
            self._api.patch(*key, HOLD)
        for kind in (MODEL, POOL):
            self._api.delete(kind, self._world.namespace, "anew")
        self._world.add_model("anew")
        self._world.add_pool("anew")
        self._world.add_model("newcomer", pool="anew")
        self._keep("made anew", MODEL, "anew", ready="PredecessorRemains")
        self._keep("pool: made anew", POOL, "anew", ready="PredecessorRemains")
        self._wait(MODEL, "newcomer", ready="PredecessorRemains")
        for key in held:
            self._api.patch(*key, RELEASE)

    def _changed(self, operator: Operator) -> None:
        for name in ("rolling", "unseen", "fewer", "deleted", "drained"):
            self._wait(MODEL, name, ready="Ready", status="True")
        old = {pod["metadata"]["uid"] for pod in self._world.pods(model="rolling")}
        self._plays["rolling"] = lambda pod: (
            None if pod["metadata"]["uid"] in old else running(pod, ready=False)
        )
        self._world.patch("rolling", context={"length": 512})
        self._keep("rolling out", MODEL, "rolling", ready="RollingOut")
        self._scaled_down()
        for kind, name in ((POOL, "deserted"), (MODEL, "deleted")):
            self._api.patch(kind, self._world.namespace, name, HOLD)
            self._api.delete(kind, self._world.namespace, name)
        stop(operator)
        self._world.patch("unseen", context={"length": 512})
        self._keep("changed, not seen yet", MODEL, "unseen")
        self._keep("being deleted", MODEL, "deleted")
        self._keep("pool: being deleted", POOL, "deserted")
        for kind, name in ((POOL, "deserted"), (MODEL, "deleted")):
            self._api.patch(kind, self._world.namespace, name, RELEASE)

    def _scaled_down(self) -> None:
        """A replica that is held on its way out, as one that drains is."""
        off = {"ready": "ScaledToZero", "status": "True"}
        (pod,) = self._world.pods(model="drained")
        key = (POD, self._world.namespace, pod["metadata"]["name"])
        self._api.patch(*key, HOLD)
        for name in ("drained", "fewer"):
            self._api.patch(MODEL, self._world.namespace, name, {"spec": {"replicas": 0}}, "/scale")
        self._keep(
            "scaled to 0", MODEL, "fewer", ready="ScaledToZero", status="True", working="False"
        )
        self._keep(
            "scaling to 0", MODEL, "drained", ready="ScaledToZero", status="True", working="True"
        )
        self._api.patch(*key, RELEASE)
        self._wait(MODEL, "drained", **off, working="False")

    def _invalid(self) -> None:
        """As stored before the rule that it breaks existed."""
        schemas = {kind: self._relax(kind) for kind in (MODEL, POOL)}
        try:
            self._until_stored(self._world.add_pool, POOL, "odd")
            self._until_stored(self._world.add_model, MODEL, "odd")
            self._keep("invalid spec", MODEL, "odd", ready="InvalidSpec", stalled="True")
            self._keep("pool: invalid spec", POOL, "odd", ready="InvalidSpec", stalled="True")
        finally:
            for kind, versions in schemas.items():
                self._api.patch(CRD, "", _crd(kind), {"spec": {"versions": versions}})
                self._api.delete(kind, self._world.namespace, "odd")

    def _clear(self) -> None:
        for kind in (MODEL, POOL):
            for left in self._api.items(kind, self._world.namespace):
                self._api.delete(kind, self._world.namespace, left["metadata"]["name"])
        self._world.kubelet.serve = lambda _pod: None
        self._world.kubelet.outcome = lambda _model: fetched()

    def _relax(self, kind: Kind) -> list[Manifest]:
        found = self._api.get(CRD, "", _crd(kind)) or {}
        (version,) = versions = found["spec"]["versions"]
        properties = dict(version["schema"]["openAPIV3Schema"]["properties"])
        properties["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"openAPIV3Schema": {"type": "object", "properties": properties}}
        relaxed = [{**version, "schema": schema}]
        self._api.patch(CRD, "", _crd(kind), {"spec": {"versions": relaxed}})
        return list(versions)

    def _until_stored(self, add: Callable[..., Any], kind: Kind, name: str) -> None:
        def is_stored() -> bool:
            self._api.delete(kind, self._world.namespace, name)
            try:
                add(name, colour="blue")
            except ApiError:
                return False
            found = self._api.get(kind, self._world.namespace, name) or {}
            return "colour" in found.get("spec", {})

        eventually(is_stored, "the relaxed schema is served", timeout_s=WAIT_S, step_s=0.3)

    def _younger_than(self, name: str) -> None:
        created = self._world.model(name)["metadata"]["creationTimestamp"]
        then = datetime.fromisoformat(created).timestamp()
        # Creation times have whole seconds, and the older of two models gets a name.
        eventually(lambda: time.time() > then + 1.1, "a second has passed")

    def _keep(self, state: str, kind: Kind, name: str, **wanted: str) -> None:
        self.seen[state] = self._wait(kind, name, **wanted)

    def _wait(self, kind: Kind, name: str, **wanted: str) -> Manifest:
        """The object once it is so; without ``wanted``, as it is."""

        def found() -> Manifest | None:
            live = self._api.get(kind, self._world.namespace, name)
            return live if live is not None and (not wanted or _is(live, **wanted)) else None

        try:
            live: Manifest = eventually(found, f"{kind.kind} {name}: {wanted}", timeout_s=WAIT_S)
        except AssertionError as error:
            status = (self._api.get(kind, self._world.namespace, name) or {}).get("status")
            raise AssertionError(f"{error}: {status}") from None
        return {"apiVersion": kind.api_version, "kind": kind.kind, **live}

    def _serve(self, pod: Manifest) -> Manifest | None:
        play = self._plays.get(labels_of(pod).get(names.LABEL_MODEL, ""))
        return play(pod) if play else None

    def _second_crashes(self, pod: Manifest) -> Manifest | None:
        return crashed(pod, 13, "no") if pod["metadata"]["name"].endswith("-1") else None


def stop(operator: Operator) -> None:
    """Gently, so that the next one need not wait for its lease; a machine may be too busy."""
    try:
        operator.terminate()
    except subprocess.TimeoutExpired:
        operator.kill()


def _is(
    live: Manifest,
    *,
    ready: str,
    status: str = "False",
    stalled: str = "",
    available: str = "",
    working: str = "",
) -> bool:
    """Whether these conditions hold for the generation that is stored."""
    if (live.get("status") or {}).get("observedGeneration") != live["metadata"]["generation"]:
        return False
    found = condition(live, "Ready")
    others = {"Stalled": stalled, "Available": available, "Reconciling": working}
    return (found.get("reason"), found.get("status")) == (ready, status) and all(
        condition(live, kind).get("status") == wanted for kind, wanted in others.items() if wanted
    )


def _no_image(pod: Manifest) -> Manifest:
    status = running(pod, ready=False)
    waits = {"reason": "ImagePullBackOff", "message": "not found"}
    status["containerStatuses"][0]["state"] = {"waiting": waits}
    return {**status, "phase": "Pending"}


def _killed(pod: Manifest) -> Manifest:
    """A replica that went over its memory limit."""
    status = crashed(pod, 137, "")
    status["containerStatuses"][0]["lastState"]["terminated"]["reason"] = "OOMKilled"
    return status


def _crd(kind: Kind) -> str:
    return f"{kind.plural}.{names.GROUP}"
