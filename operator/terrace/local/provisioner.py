"""Folders of this machine as PersistentVolumes, for StorageClasses of ``terrace.dev/local``.

Owns: creating a ``local`` volume for a claim, growing it with its claim, and deleting a released
one with its folder. Does not own: binding, which the real controller-manager does. Next:
``hostnode.py`` runs it.

The capacity of a volume is what its claim asks for; nothing keeps a pod from writing more.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from terrace.api.quantity import parse_quantity
from terrace.local.node_client import ApiError, NodeClient
from terrace.local.node_names import PROVISIONER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from terrace.local.event_recorder import EventRecorder

Json = dict[str, Any]

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_CLAIMS = "/api/v1/persistentvolumeclaims"
_VOLUMES = "/api/v1/persistentvolumes"
_NAME = re.compile(r"pvc-[0-9a-f-]{36}")
_CONFLICT = 409

_log = structlog.get_logger()


def volume_for(claim: Json, storage_class: Json, node: str, folder: Path) -> Json:
    """The PersistentVolume for a claim: bound to it by claimRef, to this node by affinity. Pure."""
    meta, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{meta['uid']}"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy") or "Delete",
            "storageClassName": storage_class["metadata"]["name"],
            "local": {"path": str(folder / name)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {
                                    "key": "kubernetes.io/hostname",
                                    "operator": "In",
                                    "values": [node],
                                }
                            ]
                        }
                    ]
                }
            },
        },
    }


def is_due(claim: Json, storage_class: Json, node: str) -> bool:
    """Whether this node should make a volume for ``claim`` now. Pure."""
    if storage_class.get("provisioner") != PROVISIONER or claim["spec"].get("volumeName"):
        return False
    if claim["metadata"].get("deletionTimestamp"):
        return False
    if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer":
        return bool((claim["metadata"].get("annotations") or {}).get(_SELECTED_NODE) == node)
    return True


def grown_size(claim: Json) -> str:
    """The size that a bound claim asks for and does not have yet, or nothing. Pure."""
    wanted = str(claim["spec"]["resources"]["requests"]["storage"])
    status = claim.get("status") or {}
    have = str((status.get("capacity") or {}).get("storage", ""))
    if status.get("phase") != "Bound" or not have:
        return ""
    return wanted if parse_quantity(wanted) > parse_quantity(have) else ""


def obstacle(claim: Json) -> str:
    """Why no volume can be made for ``claim``, or nothing. Pure."""
    spec = claim["spec"]
    if spec.get("volumeMode") == "Block":
        return f"{PROVISIONER} makes folders, not block devices: set volumeMode to Filesystem"
    if spec.get("selector"):
        return f"{PROVISIONER} makes a new volume for each claim: spec.selector cannot be met"
    if spec.get("dataSource") or spec.get("dataSourceRef"):
        return f"{PROVISIONER} cannot fill a volume from a dataSource"
    return ""


@dataclass
class Provisioner:
    """Watches claims and volumes."""

    client: NodeClient
    events: EventRecorder
    node: str
    folder: Path
    """Holds one folder per volume; nothing outside it is ever deleted."""
    retry_s: float = 2.0
    """After a failure; a watch does not tell twice of what does not change."""
    _classes: dict[str, Json] = field(default_factory=dict)

    async def serve(self) -> None:
        """Runs for ever."""
        self.folder.mkdir(parents=True, exist_ok=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(_CLAIMS, self._serve_claim))
            group.create_task(self._follow(_VOLUMES, self._reclaim))

    async def _follow(self, path: str, work: Callable[[Json], Awaitable[None]]) -> None:
        """Has every object worked on, each in its own time."""
        changes = self.client.list_and_watch(path, lambda why: _log.warning("watching", reason=why))
        newest: dict[str, Json] = {}
        async with asyncio.TaskGroup() as group:
            async for change in changes:
                if change.kind == "LISTED":
                    continue
                uid = change.object["metadata"]["uid"]
                if change.kind == "DELETED":
                    newest.pop(uid, None)
                    continue
                is_idle = uid not in newest
                newest[uid] = change.object
                if is_idle:
                    group.create_task(self._insist(work, newest, uid))

    async def _insist(
        self, work: Callable[[Json], Awaitable[None]], newest: dict[str, Json], uid: str
    ) -> None:
        """Until it is done for the object as it is by then, or the object is gone."""
        while (item := newest.get(uid)) is not None:
            try:
                await work(item)
            except (ApiError, OSError) as error:
                name = item["metadata"]["name"]
                await _log.awarning("storage not served yet", object=name, reason=str(error))
                await asyncio.sleep(self.retry_s)
            else:
                if newest.get(uid) is item:
                    del newest[uid]

    async def _serve_claim(self, claim: Json) -> None:
        if grown_size(claim):
            await self._grow(claim)
        elif not claim["spec"].get("volumeName"):
            await self._provide(claim)

    async def _provide(self, claim: Json) -> None:
        storage_class = await self._class_of(claim)
        if storage_class is None or not is_due(claim, storage_class, self.node):
            return
        why_not = obstacle(claim)
        if why_not:
            self.events.record(
                claim | {"kind": "PersistentVolumeClaim"}, "Warning", "ProvisioningFailed", why_not
            )
            return
        volume = volume_for(claim, storage_class, self.node, self.folder)
        await asyncio.to_thread(_make_folder, Path(volume["spec"]["local"]["path"]))
        try:
            await self.client.create(_VOLUMES, volume)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
        self.events.record(
            claim | {"kind": "PersistentVolumeClaim"},
            "Normal",
            "ProvisioningSucceeded",
            f"Successfully provisioned volume {volume['metadata']['name']}",
        )

    async def _grow(self, claim: Json) -> None:
        """A folder needs no growing: volume and claim are told their new size."""
        storage_class = await self._class_of(claim)
        if storage_class is None or storage_class.get("provisioner") != PROVISIONER:
            return
        meta, spec = claim["metadata"], claim["spec"]
        capacity = {"storage": grown_size(claim)}
        await self.client.patch(
            f"{_VOLUMES}/{spec['volumeName']}", {"spec": {"capacity": capacity}}
        )
        path = f"/api/v1/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}"
        await self.client.patch(f"{path}/status", {"status": {"capacity": capacity}})

    async def _class_of(self, claim: Json) -> Json | None:
        name = claim["spec"].get("storageClassName")
        if not name:
            return None
        if name not in self._classes:
            found = await self.client.find(f"{_CLASSES}/{name}")
            if found is None:
                return None
            self._classes[name] = found
        return self._classes[name]

    async def _reclaim(self, volume: Json) -> None:
        """Deletes a released volume and its folder, where its policy says Delete."""
        meta, spec = volume["metadata"], volume["spec"]
        is_ours = (meta.get("annotations") or {}).get(PROVISIONED_BY) == PROVISIONER
        is_released = (volume.get("status") or {}).get("phase") == "Released"
        if not is_ours or not is_released or meta.get("deletionTimestamp"):
            return
        if spec.get("persistentVolumeReclaimPolicy") != "Delete":
            return
        path = self._own_folder(volume)
        if path is None:
            return
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        await self.client.delete(f"{_VOLUMES}/{meta['name']}", meta["uid"])

    def _own_folder(self, volume: Json) -> Path | None:
        """The volume's folder if it is one of ours: a volume object may name any path."""
        path = Path((volume["spec"].get("local") or {}).get("path") or "/")
        name = volume["metadata"]["name"]
        if path != self.folder / name or not _NAME.fullmatch(name) or path.is_symlink():
            return None
        return path


def _make_folder(path: Path) -> None:
    """Open to every user, as a pod of any user may mount it."""
    path.mkdir(exist_ok=True)
    path.chmod(0o777)
