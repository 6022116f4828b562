"""Keeps the Node object and its Lease true.

Owns: registration, the Lease every 10 s, the status when it changes and every five minutes.
Does not own: what they say (``node_status.py``). Next: ``hostnode.py``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog

from terrace.local.node_client import ApiError, NodeClient
from terrace.local.node_status import (
    Machine,
    Pressures,
    keep_transitions,
    lease_object,
    micro_time,
    node_object,
    node_status,
    pressures,
)

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

_log = structlog.get_logger()
_LEASE_EVERY_S = 10.0
_STATUS_EVERY_BEATS = 30
_RETRY_S = 1.0
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass
class NodeHeart:
    """The node's sign of life."""

    client: NodeClient
    name: str
    address: str
    port: int
    machine: Machine
    version: str
    folder: Path
    """On the disk that pods write to."""
    _uid: str = ""
    _told: Pressures = field(default_factory=Pressures)

    async def register(self) -> None:
        """Creates or updates the Node; tries until the server takes it."""
        while True:
            try:
                await self._register()
            except ApiError as error:
                await _log.awarning("node not registered yet", reason=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def beat(self) -> None:
        """Renews the Lease, and now and then the status, for ever."""
        beats = 0
        while True:
            try:
                await self._renew()
                beats += 1
                is_due = beats % _STATUS_EVERY_BEATS == 0
                if is_due or await asyncio.to_thread(pressures, self.folder) != self._told:
                    await self._register()
            except ApiError as error:
                await _log.awarning("heartbeat failed", reason=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                await asyncio.sleep(_LEASE_EVERY_S)

    async def _register(self) -> None:
        path = f"/api/v1/nodes/{self.name}"
        wanted = node_object(self.name, self.machine)
        found = await self.client.find(path)
        if found is None:
            found = await self.client.create("/api/v1/nodes", wanted)
        elif not _holds(found["metadata"], wanted["metadata"]):
            found = await self.client.patch(path, {"metadata": wanted["metadata"]})
        self._uid = found["metadata"]["uid"]
        pressed = await asyncio.to_thread(pressures, self.folder)
        status = node_status(
            self.machine, pressed, self.address, self.port, datetime.now(UTC), self.version
        )
        keep_transitions(status, found.get("status") or {})
        await self.client.patch(f"{path}/status", {"status": status}, is_strategic=True)
        self._told = pressed

    async def _renew(self) -> None:
        renewed = {"spec": {"renewTime": micro_time(datetime.now(UTC))}}
        try:
            await self.client.patch(f"{_LEASES}/{self.name}", renewed)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:  # the first beat
                raise
            # Or the Node was deleted, and its Lease with it: the new one has another uid.
            await self._register()
            lease = lease_object(self.name, self._uid, datetime.now(UTC))
            await self.client.create(_LEASES, lease)


def _holds(found: Json, wanted: Json) -> bool:
    return all(
        (found.get(field) or {}).get(key) == value
        for field in ("labels", "annotations")
        for key, value in wanted[field].items()
    )
