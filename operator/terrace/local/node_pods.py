"""The pods bound to this node: a runner for each, its status in the API, its deletion.

Owns: from a watched pod to a running ``PodRunner`` and back to the pod's status. Does not own:
running (``pods/``), the watch's transport (``node_client.py``). Next: ``hostnode.py`` wires it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import structlog

from terrace.local.node_client import ApiError, Change, NodeClient
from terrace.local.pods import scratch
from terrace.local.pods.addresses import AddressPool, NoAddressError
from terrace.local.pods.pod import PodRunner
from terrace.local.pods.spec import InvalidPodError, Pod, parse_pod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.local.event_recorder import EventRecorder
    from terrace.local.pods.context import Settings
    from terrace.local.pods.ports import Sources

Json = dict[str, Any]

_log = structlog.get_logger()
_OVER = {"Succeeded", "Failed"}
_RETRY_S = 0.5
_LEAST_GRACE_S = 1.0


@dataclass
class PodWork:
    """One pod of this node; the Listener of its runner."""

    manifest: Json
    events: EventRecorder
    runner: PodRunner | None = None
    running: asyncio.Task[None] | None = None
    """The runner's own task: it goes on when the writing of statuses is cancelled."""
    task: asyncio.Task[None] | None = None
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    is_gone: bool = False
    """The API no longer holds this pod."""
    stop_grace_s: float = float("inf")
    """The shortest grace asked for so far; a repeat of it is no news."""
    stops: list[asyncio.Task[None]] = field(default_factory=list)

    def changed(self) -> None:
        """See Listener."""
        self.dirty.set()

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """See Listener."""
        self.events.record(self.manifest, kind, reason, message)

    @property
    def path(self) -> str:
        """The pod's path in the API."""
        meta = self.manifest["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    @property
    def uid(self) -> str:
        """The pod's identity."""
        return str(self.manifest["metadata"]["uid"])


@dataclass
class NodePods:
    """All pods of the node, by uid."""

    client: NodeClient
    settings: Settings
    sources: Sources
    events: EventRecorder
    addresses: AddressPool
    work: dict[str, PodWork] = field(default_factory=dict)
    has_listed: asyncio.Event = field(default_factory=asyncio.Event)

    def find(self, namespace: str, name: str) -> PodWork | None:
        """The pod of that name (the newest, should an older one still be ending)."""
        wanted = (namespace, name)
        found = [
            one
            for one in self.work.values()
            if (one.manifest["metadata"]["namespace"], one.manifest["metadata"]["name"]) == wanted
        ]
        return found[-1] if found else None

    async def follow(self, node: str) -> None:
        """Watches the pods of ``node`` for ever."""
        changes = self.client.list_and_watch(
            "/api/v1/pods",
            lambda trouble: _log.warning("watching pods", reason=trouble),
            fieldSelector=f"spec.nodeName={node}",
        )
        async for change in changes:
            self.take(change)

    def take(self, change: Change) -> None:
        """Acts on one change; level-triggered, so a repeated one does nothing."""
        if change.kind == "LISTED":
            if not self.has_listed.is_set():
                self.has_listed.set()
                self._sweep()
            return
        uid = change.object["metadata"]["uid"]
        work = self.work.get(uid)
        if work is None:
            if change.kind == "DELETED":
                return
            work = self.work[uid] = PodWork(change.object, self.events)
            work.task = asyncio.create_task(self._carry(work))
        work.manifest = change.object
        if work.runner is not None:
            work.runner.update(change.object)
        work.is_gone = work.is_gone or change.kind == "DELETED"
        self._stop_if_asked(work)
        work.dirty.set()

    async def stop_all(self, grace_s: float) -> None:
        """Ends every process of every pod. The API is told nothing: the next agent goes on."""
        tasks = [one.task for one in self.work.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        runners = [one.runner for one in self.work.values() if one.runner is not None]
        await asyncio.gather(*(one.stop(grace_s, "the host node ends") for one in runners))
        running = [one.running for one in self.work.values() if one.running is not None]
        await asyncio.gather(*running, return_exceptions=True)

    def _stop_if_asked(self, work: PodWork) -> None:
        meta = work.manifest["metadata"]
        if work.runner is None or not (work.is_gone or meta.get("deletionTimestamp")):
            return
        asked = meta.get("deletionGracePeriodSeconds")
        grace_s = work.runner.pod.grace_s if asked is None else max(float(asked), _LEAST_GRACE_S)
        if grace_s >= work.stop_grace_s:
            return
        work.stop_grace_s = grace_s
        work.stops.append(asyncio.create_task(work.runner.stop(grace_s)))

    def _sweep(self) -> None:
        """Removes what pods left that were deleted while no agent ran."""
        folder = self.settings.folder
        for path in (folder / "pods").glob("*"):
            if path.name not in self.work:
                scratch.remove_all(path)
                shutil.rmtree(path, ignore_errors=True)
        for path in (folder / "logs").glob("*_*_*"):
            if path.name.rpartition("_")[2] not in self.work:
                shutil.rmtree(path, ignore_errors=True)

    async def _carry(self, work: PodWork) -> None:
        """The whole stay of a pod on this node."""
        try:
            if (work.manifest.get("status") or {}).get("phase") not in _OVER:
                await self._run(work)
        except Exception as error:  # noqa: BLE001  one pod must not end the node
            await _log.aexception("pod work failed", pod=work.path)
            work.event("Warning", "HostNodeError", f"{type(error).__name__}: {error}")
            if work.runner is not None:
                await work.runner.stop(0.0)
        while not work.is_gone:
            if work.manifest["metadata"].get("deletionTimestamp"):
                await self._delete(work)
            work.dirty.clear()
            if not work.is_gone:
                await work.dirty.wait()
        if work.runner is not None:
            await asyncio.to_thread(work.runner.remove)
        self.work.pop(work.uid, None)

    async def _run(self, work: PodWork) -> None:
        admitted = await self._admitted(work)
        if admitted is None:
            return
        pod, address = admitted
        work.runner = PodRunner(pod, address, self.settings, self.sources, work)
        running = work.running = asyncio.create_task(work.runner.run())
        self._stop_if_asked(work)
        writing = asyncio.create_task(self._write_while(work, running))
        try:
            await asyncio.shield(running)
            await writing
        finally:
            writing.cancel()
            if address != self.settings.host_ip:
                self.addresses.give_back(address)

    def _address(self, pod: Pod) -> str:
        if pod.manifest["spec"].get("hostNetwork"):
            return self.settings.host_ip
        earlier = (pod.manifest.get("status") or {}).get("podIP") or ""
        return self.addresses.take(earlier)

    async def _admitted(self, work: PodWork) -> tuple[Pod, str] | None:
        """The pod and its address, or None after its status says why it cannot run here."""
        try:
            pod = parse_pod(work.manifest)
            address = self._address(pod)
        except (InvalidPodError, NoAddressError, KeyError, ValueError) as error:
            message = f"the host node cannot run this pod: {error}"
            work.event("Warning", "HostNodeRefused", message)
            refused = {"phase": "Failed", "reason": "HostNodeRefused", "message": message}
            await self._write(work, refused)
            return None
        return pod, address

    async def _write_while(self, work: PodWork, running: asyncio.Task[None]) -> None:
        """Keeps the API's status equal to the runner's, until the last one is written."""
        written: Json = {}
        while not work.is_gone:
            work.dirty.clear()
            is_last = running.done()
            assert work.runner is not None, "_run sets it first"
            status = work.runner.status()
            if status != written and await self._write(work, status):
                written = status
            if is_last:
                return
            dirty = asyncio.ensure_future(work.dirty.wait())
            await asyncio.wait((dirty, running), return_when=asyncio.FIRST_COMPLETED)
            dirty.cancel()

    async def _write(self, work: PodWork, status: Json) -> bool:
        body = as_patch(work.uid, status)
        while not work.is_gone:
            try:
                await self.client.patch(f"{work.path}/status", body, is_strategic=True)
            except ApiError as error:
                if error.status == HTTPStatus.NOT_FOUND or await self._is_another(work, error):
                    return False
                await _log.awarning("status not written", pod=work.path, reason=str(error))
                if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
                    return True  # the same again would be refused again
                await asyncio.sleep(_RETRY_S)
            else:
                return True
        return False

    async def _is_another(self, work: PodWork, error: ApiError) -> bool:
        """Whether a conflict means that the name is another pod's: a busy pod has them, too."""
        if error.status != HTTPStatus.CONFLICT:
            return False
        try:
            found = await self.client.find(work.path)
        except ApiError:
            return False
        return found is None or found["metadata"]["uid"] != work.uid

    async def _delete(self, work: PodWork) -> None:
        """Tells the API that no process is left; finalizers of others may still hold the pod."""
        while not work.is_gone:
            with contextlib.suppress(ApiError):
                await self.client.delete(work.path, work.uid, grace_s=0)
                return
            await asyncio.sleep(_RETRY_S)


def as_patch(uid: str, status: Mapping[str, Any]) -> Json:
    """The strategic merge patch that makes a pod's status ours. Pure.

    podIPs and hostIPs merge by key: the directive says that ours are all there are. Conditions
    merge by type, so that others' stay: what a condition of ours no longer says is null.
    """
    replaced = {
        key: [{"$patch": "replace"}, *status[key]] for key in ("podIPs", "hostIPs") if key in status
    }
    conditions = [
        {"reason": None, "message": None, **entry} for entry in status.get("conditions") or ()
    ]
    return {
        "metadata": {"uid": uid},
        "status": {**status, **replaced, **({"conditions": conditions} if conditions else {})},
    }
