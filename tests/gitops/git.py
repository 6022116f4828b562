"""What one test has in Git, and so in the cluster, and waiting for what becomes of it.

Owns: applying a folder of examples/ as a GitOps controller does, and taking it away again. Does not
own: the requests (``applying.py``).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cluster.controller_api import Api, ApiError, Manifest, eventually
from gitops.applying import Applier, make_namespace, placed, rendered
from gitops.evaluators import EXAMPLES
from support.controller_objects import condition

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace.local.cluster import LocalCluster

WAIT_S = 90.0


def is_seen(live: Manifest) -> bool:
    status = live.get("status") or {}
    return bool(status.get("observedGeneration") == live["metadata"]["generation"])


class Git:
    """What one test has in Git and in the cluster; gone from the cluster afterwards."""

    def __init__(self, api: Api, cluster: LocalCluster) -> None:
        self.applier = Applier(api)
        self.cluster = cluster
        self._api = api
        self._made: list[Manifest] = []

    def apply(self, folder: str, namespace: str = "") -> list[Manifest]:
        """All manifests of an example."""
        name = namespace or f"drift-{folder.replace('/', '-')}"
        manifests = placed(rendered(self.cluster, EXAMPLES / folder), name)
        for manifest in manifests:
            make_namespace(self._api, manifest["metadata"]["namespace"])
            self._made.append(manifest)
            self.applier.apply(manifest)
        return manifests

    def clear(self) -> None:
        """Take all of it out of the cluster, but for namespaces."""
        self.forget(self._made)

    def forget(self, manifests: list[Manifest]) -> None:
        """Take these out of the cluster."""
        for manifest in manifests:
            if manifest["kind"] != "Namespace":
                self._remove(manifest)

    def _remove(self, manifest: Manifest) -> None:
        path = self.applier.path(manifest)
        with contextlib.suppress(ApiError):
            self._api.request("DELETE", path)
            # Argo CD is not here to do what its finalizer is for.
            nothing = {"metadata": {"finalizers": None}}
            self._api.request("PATCH", path, nothing, "application/merge-patch+json")

    def generations(self, manifests: list[Manifest]) -> list[int]:
        """metadata.generation of each."""
        return [self.applier.live(each)["metadata"]["generation"] for each in manifests]

    def wait_seen(self, manifest: Manifest, replicas: int | None = None) -> Manifest:
        """Until the operator has looked at it and, where that is asked, so many replicas exist."""

        def found() -> Manifest | None:
            live = self.applier.live(manifest)
            is_there = replicas is None or live["status"].get("replicas", 0) == replicas
            return live if is_seen(live) and is_there else None

        live: Manifest = self._until(found, manifest, f"seen, {replicas} replicas")
        return live

    def wait_ready(self, manifest: Manifest) -> None:
        """Until it is Ready."""

        def is_ready() -> bool:
            return condition(self.applier.live(manifest), "Ready").get("status") == "True"

        self._until(is_ready, manifest, "it is ready")

    def _until(self, probe: Callable[[], Any], manifest: Manifest, what: str) -> Any:
        name = manifest["metadata"]["name"]
        try:
            return eventually(probe, f"{name}: {what}", timeout_s=WAIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.applier.live(manifest).get('status')}") from None
