"""Events on objects, without floods.

Owns: the queue of events, counting repeats in one Event object. Does not own: what is said
(the pod runner, the provisioner). Writing fails softly: an event is a courtesy.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from terrace.local.node_client import ApiError, NodeClient

Json = dict[str, Any]

COMPONENT = "terrace-host-node"
_MAX_WAITING = 1000
_MAX_KNOWN = 4000
_MAX_MESSAGE = 1024
_REPEAT_EVERY_S = 10.0
"""A repeat is counted at once and written at most this often."""


@dataclass
class _Known:
    path: str
    count: int
    written: float


@dataclass
class EventRecorder:
    """Sends events one after another; a full queue drops the newest."""

    client: NodeClient
    node: str
    _waiting: asyncio.Queue[tuple[Json, str, str, str]] = field(
        default_factory=lambda: asyncio.Queue(_MAX_WAITING)
    )
    _known: dict[tuple[str, str, str], _Known] = field(default_factory=dict)

    def record(
        self, involved: Json, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Queues an event on ``involved`` (a whole object); never blocks."""
        if not self._waiting.full():
            reference = {
                "apiVersion": involved.get("apiVersion") or "v1",
                "kind": involved.get("kind") or "Pod",
                "name": involved["metadata"]["name"],
                "namespace": involved["metadata"].get("namespace") or "default",
                "uid": involved["metadata"]["uid"],
            }
            self._waiting.put_nowait((reference, kind, reason, message[:_MAX_MESSAGE]))

    async def send(self) -> None:
        """Sends for ever."""
        while True:
            reference, kind, reason, message = await self._waiting.get()
            try:
                await self._send(reference, kind, reason, message)
            except ApiError:
                continue

    async def _send(self, reference: Json, kind: str, reason: str, message: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        key = (reference["uid"], reason, message)
        known = self._known.get(key)
        if known is not None:
            known.count += 1
            if time.monotonic() - known.written >= _REPEAT_EVERY_S:
                known.written = time.monotonic()
                await self.client.patch(known.path, {"count": known.count, "lastTimestamp": stamp})
            return
        name = f"{reference['name']}.{uuid.uuid4().hex[:16]}"
        folder = f"/api/v1/namespaces/{reference['namespace']}/events"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": reference["namespace"]},
            "involvedObject": reference,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT, "host": self.node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.node,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        await self.client.create(folder, event)
        self._known[key] = _Known(f"{folder}/{name}", 1, time.monotonic())
