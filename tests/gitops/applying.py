"""Applies manifests as GitOps controllers do: server-side, under a name of their own.

Owns: rendering folders of examples/, applying, and what differs from what a manifest says. Does not
own: what is applied.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from cluster.controller_api import ApiError, eventually
from gitops.evaluators import EXAMPLES, documents

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.controller_api import Api, Manifest
    from terrace.local.cluster import LocalCluster

APPLY = "application/apply-patch+yaml"
GITOPS = "kustomize-controller"
"""Flux's field manager; Argo CD's is argocd-controller."""


class Applier:
    """Server-side apply, with the paths of all kinds that the server has."""

    def __init__(self, api: Api, manager: str = GITOPS) -> None:
        self._api = api
        self._manager = manager
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}

    def apply(self, manifest: Manifest, *, dry_run: bool = False, force: bool = False) -> Manifest:
        """The object afterwards; without ``force``, another manager's field is a conflict."""
        query = f"?fieldManager={self._manager}&fieldValidation=Strict"
        query += f"{'&dryRun=All' if dry_run else ''}{'&force=true' if force else ''}"
        return self._api.request("PATCH", self.path(manifest) + query, manifest, APPLY)

    def live(self, manifest: Manifest) -> Manifest:
        """The object as it is."""
        return self._api.request("GET", self.path(manifest))

    def scale(self, manifest: Manifest, replicas: int) -> None:
        """As an autoscaler does."""
        body = {"spec": {"replicas": replicas}}
        path = f"{self.path(manifest)}/scale?fieldManager=autoscaler"
        self._api.request("PATCH", path, body, "application/merge-patch+json")

    def drift(self, manifest: Manifest, *, force: bool = False) -> list[str]:
        """Fields that applying would change: of spec and metadata, what people own."""
        live, wanted = eventually(
            lambda: self._both(manifest, force=force), "nobody writes between the two looks"
        )
        changed = [*_differences("spec", live.get("spec"), wanted.get("spec"))]
        for field in ("labels", "annotations", "generation", "finalizers", "ownerReferences"):
            before, after = live["metadata"].get(field), wanted["metadata"].get(field)
            changed += _differences(f"metadata.{field}", before, after)
        return changed

    def _both(self, manifest: Manifest, *, force: bool) -> tuple[Manifest, Manifest] | None:
        """The object as it is and as it would be, of one version; None where it changed."""
        live = self.live(manifest)
        wanted = self.apply(manifest, dry_run=True, force=force)
        versions = {each["metadata"]["resourceVersion"] for each in (live, wanted)}
        return (live, wanted) if len(versions) == 1 else None

    def path(self, manifest: Manifest) -> str:
        """URL path of the object."""
        version, kind = manifest["apiVersion"], manifest["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        # A kind is established, and served, a moment before the server's list names it.
        eventually(lambda: self._is_known(root, version, kind), f"{kind} of {version} is listed")
        plural, is_namespaced = self._resources[version, kind]
        metadata = manifest["metadata"]
        place = f"/namespaces/{metadata.get('namespace', 'default')}" if is_namespaced else ""
        return f"{root}{place}/{plural}/{metadata['name']}"

    def _is_known(self, root: str, version: str, kind: str) -> bool:
        if (version, kind) in self._resources:
            return True
        try:
            resources = self._api.request("GET", root)["resources"]
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        self._resources |= {
            (version, found["kind"]): (found["name"], found["namespaced"])
            for found in resources
            if "/" not in found["name"]
        }
        return (version, kind) in self._resources


def rendered(cluster: LocalCluster, folder: Path) -> list[Manifest]:
    """The manifests of a folder of examples/: what kustomize makes of it, or its files."""
    if (folder / "kustomization.yaml").exists():
        built = subprocess.run(
            cluster.kubectl_command("kustomize", str(folder)),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        return [each for each in yaml.safe_load_all(built) if each]
    return [each for file in _manifest_files(folder) for each in documents(file)]


def example_folders() -> list[str]:
    """Every folder of examples/ that is applied as a whole."""
    found = {file.parent for file in _manifest_files(EXAMPLES, "**/*.yaml")}
    bases = {folder for folder in found if folder.name == "base"}
    return sorted(str(folder.relative_to(EXAMPLES)) for folder in found - bases)


def placed(manifests: list[Manifest], namespace: str) -> list[Manifest]:
    """In that namespace, where they name none."""
    return [
        {**each, "metadata": {"namespace": namespace, **each["metadata"]}} for each in manifests
    ]


def make_namespace(api: Api, name: str) -> None:
    """A namespace, if it is not there yet."""
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name},
    }
    api.request("PATCH", f"/api/v1/namespaces/{name}?fieldManager=tests", body, APPLY)


def _manifest_files(folder: Path, pattern: str = "*.yaml") -> list[Path]:
    """Values of a chart are the only YAML files in examples/ that are no manifests."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("values"))


def _differences(path: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            change
            for key in keys
            for change in _differences(f"{path}.{key}", before.get(key), after.get(key))
        ]
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]
