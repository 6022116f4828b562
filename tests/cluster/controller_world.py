"""What most tests of the controller on a real control plane need, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.controller_api import WAIT_S, Api, Manifest, eventually
from support.controller_objects import condition, model, pool
from terrace.api import names
from terrace.controller.kinds import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    JOB,
    MODEL,
    POD,
    POOL,
    SERVICE,
    STATEFULSET,
    Kind,
)

if TYPE_CHECKING:
    from cluster.controller_kubelet import Kubelet
    from cluster.controller_operator import Operators
    from terrace.local.cluster import LocalCluster

MANAGED = f"{names.MANAGED_BY}={names.MANAGED_BY_VALUE}"
SMALL = [{"name": "cpu", "host": {"cpu": "100m"}}]
"""A flavor of which many replicas fit on one node."""


class World:
    """A namespace of its own on the shared control plane."""

    def __init__(
        self,
        cluster: LocalCluster,
        api: Api,
        kubelet: Kubelet,
        operators: Operators,
        namespace: str,
    ) -> None:
        self.cluster = cluster
        self.api = api
        self.kubelet = kubelet
        self.operators = operators
        self.namespace = namespace

    def add_pool(self, name: str = "default", **spec: Any) -> None:
        self.api.create(POOL, pool(name, self.namespace) | _spec(spec))

    def add_model(self, name: str = "demo", **spec: Any) -> Manifest:
        return self.api.create(MODEL, model(name, self.namespace, **spec))

    def model(self, name: str = "demo") -> Manifest:
        return self.api.get(MODEL, self.namespace, name) or {}

    def patch(self, name: str = "demo", **spec: Any) -> None:
        self.api.patch(MODEL, self.namespace, name, {"spec": spec})

    def pods(self, component: str = "runtime", model: str = "") -> list[Manifest]:
        selector = f"{MANAGED},{names.COMPONENT}={component}"
        if model:
            selector += f",{names.LABEL_MODEL}={model}"
        return self.api.items(POD, self.namespace, selector)

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods()}

    def children(self) -> dict[tuple[Kind, str], Manifest]:
        kinds = (CLAIM, JOB, CONFIGMAP, SERVICE, STATEFULSET, BUDGET)
        return {
            (kind, child["metadata"]["name"]): child
            for kind in kinds
            for child in self.api.items(kind, self.namespace, MANAGED)
        }

    def wait(
        self,
        kind: str,
        status: str,
        reason: str = "",
        name: str = "demo",
        timeout_s: float = WAIT_S,
    ) -> Manifest:
        """The condition, once it is as wanted for the stored generation."""
        seen: Manifest = {}

        def is_so() -> Manifest | None:
            found = self.model(name)
            seen.clear()
            seen.update(condition(found, kind))
            is_current = seen.get("observedGeneration") == found["metadata"]["generation"]
            wanted = seen.get("status") == status and reason in ("", seen.get("reason"))
            return seen if is_current and wanted else None

        try:
            eventually(is_so, f"{name}: {kind}={status} {reason}", timeout_s=timeout_s)
        except AssertionError as error:
            problems = set(self.kubelet.problems)
            raise AssertionError(f"{error}; {self.model(name).get('status')}; {problems}") from None
        return seen

    def wait_ready(self, name: str = "demo", timeout_s: float = WAIT_S) -> None:
        self.wait("Ready", "True", name=name, timeout_s=timeout_s)


def _spec(spec: Manifest) -> Manifest:
    return {"spec": {"flavors": SMALL, "modelCache": {"size": "1Gi"}, **spec}}
