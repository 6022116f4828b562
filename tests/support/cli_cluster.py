"""The command line's port to a cluster, in memory, and objects as the operator leaves them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from support.controller_objects import MODEL_PATH, facts, node, offload_plan
from support.controller_objects import model as model_object
from support.controller_objects import pool as pool_object
from terrace.api import names
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.controller.facts import KnownModel, model_status
from terrace.controller.kinds import (
    CLAIM,
    CONFIGMAP,
    EVENT,
    JOB,
    MODEL,
    NODE,
    POD,
    POOL,
    SERVICE,
    STATEFULSET,
    Kind,
    Manifest,
    key_of,
)
from terrace.controller.port import ForbiddenError, NotFoundError
from terrace.planner.sticky import inputs_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace.api.names import Key
    from terrace.planner.plan import OffloadPlan

OWN = {names.MANAGED_BY: names.MANAGED_BY_VALUE}
MODEL_UID, SET_UID, JOB_UID = "uid-model", "uid-set", "uid-job"
LIMIT = "180000000"


class FakeReader:
    """``terrace.cli.reader.ClusterReader`` without a server."""

    server = "https://fake:6443"
    namespace = "default"

    def __init__(self, objects: Iterable[tuple[Kind, Manifest]]) -> None:
        self.objects = [(kind, copy.deepcopy(each)) for kind, each in objects]
        self.forbidden: set[Kind] = set()
        """May not be read at all."""
        self.forbidden_everywhere: set[Kind] = set()
        """May not be listed across namespaces."""

    def get(self, kind: Kind, key: Key) -> Manifest:
        self._check(kind, key.namespace)
        for each_kind, each in self.objects:
            if each_kind == kind and key_of(each) == key:
                return copy.deepcopy(each)
        raise NotFoundError(f"{kind.path(key.namespace)}/{key.name}: 404 not found")

    def list_all(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        self._check(kind, namespace)
        return [
            copy.deepcopy(each)
            for each_kind, each in self.objects
            if each_kind == kind
            and namespace in (None, each["metadata"].get("namespace"))
            and _matches(each["metadata"].get("labels") or {}, labels)
            and _about(each, fields)
        ]

    def _check(self, kind: Kind, namespace: str | None) -> None:
        everywhere = namespace is None and kind in self.forbidden_everywhere
        if kind in self.forbidden or everywhere:
            raise ForbiddenError(f"{kind.path(namespace)}: 403 user may not list {kind.plural}")


def _matches(labels: dict[str, str], selector: str) -> bool:
    wanted = [part.partition("=") for part in selector.split(",") if part]
    return all(labels.get(key) == value for key, _, value in wanted)


def _about(manifest: Manifest, fields: str) -> bool:
    _, _, uid = fields.partition("involvedObject.uid=")
    return not uid or manifest.get("involvedObject", {}).get("uid") == uid


def conditions(**told: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Conditions of generation 1; each is status, reason, message."""
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-11-22T00:00:00Z",
            "observedGeneration": 1,
        }
        for kind, (status, reason, message) in told.items()
    ]


CACHED = ("True", "Cached", "5.7 MiB, sha256 dddddddddddd")
PLACED = ("True", "Placed", "flavor cpu: 4 x 2,048 tokens in 171.7 MiB")
CALM = ("False", "NotStalled", "")


def model(told: dict[str, tuple[str, str, str]], **status: Any) -> tuple[Kind, Manifest]:
    """The model ``demo`` with these conditions and status fields."""
    found = model_object("demo")
    found["metadata"] |= {
        "uid": MODEL_UID,
        "generation": 1,
        "resourceVersion": "7",
        "creationTimestamp": "2026-11-22T00:00:00Z",
    }
    base = {"observedGeneration": 1, "conditions": conditions(**told)}
    return MODEL, {**found, "status": base | status}


def known(**values: Any) -> dict[str, Any]:
    """``status.model``."""
    found = model_status(KnownModel(facts(**values), MODEL_PATH))
    return found.model_dump(mode="json", by_alias=True, exclude_none=True)


def plan_block(**changes: Any) -> dict[str, Any]:
    """``status.plan``, by hand: the numbers of a plan are the planner's business."""
    return {
        "digest": "a1b2c3d4e5f6" + "0" * 52,
        "context": 2048,
        "parallel": 4,
        "threads": 3,
        "batchTokens": 512,
        "kvTypes": {"key": "f16", "value": "f16"},
        "weights": "mapped",
        "bytes": {"weights": 4, "kv": 8, "compute": 7, "base": 120},
        "requests": {"cpu": "3000m", "memory": "160000000"},
        "limits": {"memory": LIMIT},
        "reasons": ["context 2,048 tokens: what the model was trained for"],
        **changes,
    }


def running(**status: Any) -> dict[str, Any]:
    """Status fields of a model that has a plan."""
    return {
        "model": known(),
        "plan": plan_block(),
        "placement": {"flavor": "cpu", "statefulSet": "demo-cpu"},
        "servedNames": ["demo"],
        "url": "http://terrace-gateway.terrace-system/v1",
        **status,
    }


def pool(**spec: Any) -> tuple[Kind, Manifest]:
    """The pool ``default`` with the flavor ``cpu``."""
    found = pool_object(**spec)
    found["metadata"] |= {"uid": "uid-pool", "generation": 1, "resourceVersion": "3"}
    ready = conditions(Ready=("True", "Ready", "cpu has 1 ready nodes"), Stalled=CALM)
    return POOL, {**found, "status": {"observedGeneration": 1, "conditions": ready}}


def nodes(*each: Manifest) -> list[tuple[Kind, Manifest]]:
    """Nodes; one of 8 CPUs and 16 GiB unless others are given."""
    return [(NODE, found) for found in each or (node(),)]


def plan(**changes: Any) -> OffloadPlan:
    """The plan that the set carries."""
    return offload_plan(**changes)


def children(inputs: str | None = None) -> list[tuple[Kind, Manifest]]:
    """What the operator makes; the set was made from ``inputs``, by default from the specs."""
    spec, pool_spec = model_object("demo")["spec"], pool_object()["spec"]
    now = inputs_digest(
        facts(), ModelSpec.model_validate(spec), PoolSpec.model_validate(pool_spec), "cpu"
    )
    annotations = {
        names.ANNOTATION_PLAN: plan().model_dump_json(),
        names.ANNOTATION_INPUTS: inputs or now,
    }
    return [
        (JOB, _child("demo-fetch", uid=JOB_UID)),
        (CONFIGMAP, _child("demo-cpu-abc")),
        (SERVICE, _child("demo")),
        (STATEFULSET, _set(annotations)),
    ]


def replica(
    index: int = 0, *, ready: bool = True, bound: bool = True, **container: Any
) -> tuple[Kind, Manifest]:
    """A pod of the set; ``container`` is its container's status."""
    labels = OWN | names.selector_labels("demo") | {names.LABEL_FLAVOR: "cpu"}
    found = _child(f"demo-cpu-{index}", uid=f"uid-pod-{index}", owner=SET_UID)
    found["metadata"]["labels"] |= labels
    told = [{"type": "Ready", "status": "True" if ready else "False"}]
    if not bound:
        told.append(
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient memory.",
            }
        )
    status = {"phase": "Running" if bound else "Pending", "conditions": told}
    status["containerStatuses"] = [{"name": "runtime", **container}] if bound else []
    resources = {"requests": {"memory": "160000000"}, "limits": {"memory": LIMIT}}
    spec: dict[str, Any] = {"containers": [{"name": "runtime", "resources": resources}]}
    if bound:
        spec["nodeName"] = "node-a"
    return POD, {**found, "spec": spec, "status": status}


def fetch_pod(**status: Any) -> tuple[Kind, Manifest]:
    """The pod of the fetch Job."""
    found = _child("demo-fetch-x", uid="uid-fetch-pod", owner=JOB_UID)
    found["metadata"]["labels"] |= {names.LABEL_MODEL: "demo", names.COMPONENT: "fetch"}
    return POD, {**found, "spec": {}, "status": {"phase": "Running", **status}}


def parts(*, operator_ready: bool = True, **variables: str) -> list[tuple[Kind, Manifest]]:
    """Terrace's own pods; ``variables``: the operator's environment."""
    env = [{"name": name, "value": value} for name, value in variables.items()]
    found: list[tuple[Kind, Manifest]] = []
    for component in ("operator", "gateway"):
        is_ready = component == "gateway" or operator_ready
        metadata = {
            "name": f"terrace-{component}-x",
            "namespace": "terrace-system",
            "uid": f"uid-{component}",
            "resourceVersion": "2",
            "labels": {names.NAME: "terrace", names.COMPONENT: component},
        }
        ready = [{"type": "Ready", "status": str(is_ready)}]
        pod = {
            "metadata": metadata,
            "spec": {"containers": [{"name": component, "env": env}]},
            "status": {"phase": "Running", "conditions": ready},
        }
        found.append((POD, pod))
    return found


def warning(uid: str, reason: str, message: str) -> tuple[Kind, Manifest]:
    """A warning event about the object with that uid."""
    metadata = {"name": f"{uid}.{reason}", "namespace": "default", "resourceVersion": "9"}
    return EVENT, {
        "metadata": metadata,
        "involvedObject": {"uid": uid},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": "2026-11-22T00:00:01Z",
    }


def claim(phase: str = "Bound") -> tuple[Kind, Manifest]:
    """The pool's claim."""
    found = _child("default-models", uid="uid-claim", owner="uid-pool")
    return CLAIM, {**found, "status": {"phase": phase, "capacity": {"storage": "20Gi"}}}


def _set(annotations: dict[str, str]) -> Manifest:
    found = _child("demo-cpu", uid=SET_UID)
    found["metadata"]["annotations"] = annotations
    found["metadata"]["labels"] |= {names.LABEL_MODEL: "demo", names.LABEL_FLAVOR: "cpu"}
    return {**found, "spec": {"replicas": 1, "template": {"spec": {"containers": []}}}}


def _child(name: str, *, uid: str = "", owner: str = MODEL_UID) -> Manifest:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid or f"uid-{name}",
            "resourceVersion": "5",
            "labels": dict(OWN),
            "creationTimestamp": "2026-11-22T00:00:00Z",
            "ownerReferences": [{"uid": owner, "controller": True}],
        }
    }
