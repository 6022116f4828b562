"""Events: one per transition of a condition, and nothing else.

Owns: which transitions are told, how, and that nothing waits for the telling. Does not own:
conditions. Pure but for ``Recorder.drain``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog

from terrace.api.conditions import ConditionType, Reason
from terrace.controller.drift import digest_of
from terrace.controller.kinds import EVENT, Kind, Manifest, key_of, uid_of
from terrace.controller.packing import Packer
from terrace.controller.port import Cluster, ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

log = structlog.get_logger()

_TOLD = (
    ConditionType.READY,
    ConditionType.STALLED,
    ConditionType.MODEL_CACHED,
    ConditionType.PLACED,
    ConditionType.AVAILABLE,
)
_CALM = frozenset(
    {
        Reason.FETCHING,
        Reason.FETCH_PENDING,
        Reason.WAITING_FOR_FACTS,
        Reason.REPLICAS_STARTING,
        Reason.ROLLING_OUT,
        Reason.PREDECESSOR_REMAINS,
        Reason.SCALED_TO_ZERO,
        Reason.NOT_STALLED,
    }
)
"""Reasons of a False condition that nobody needs to worry about."""
MAX_MESSAGE = 1000
MAX_WAITING = 20_000


def transitions(before: Manifest, after: Manifest) -> Iterator[Manifest]:
    """Conditions whose status or reason changed, each reason once."""
    then = {c["type"]: (c["status"], c["reason"]) for c in before.get("conditions") or ()}
    told: set[tuple[str, str]] = set()
    # Details first: Ready repeats the reason of what it sums up and adds nothing then.
    for condition in sorted(
        after.get("conditions") or (), key=lambda c: c["type"] == ConditionType.READY
    ):
        now = (condition["status"], condition["reason"])
        is_quiet = condition["type"] == ConditionType.STALLED and condition["status"] == "False"
        if condition["type"] not in _TOLD or is_quiet or then.get(condition["type"]) == now:
            continue
        said = (condition["reason"], condition["message"])
        if said not in told:
            told.add(said)
            yield condition


def event(kind: Kind, about: Manifest, condition: Manifest, now: datetime) -> Manifest:
    """The Event of one transition; its name makes posting it twice harmless."""
    key, version = key_of(about), about["metadata"].get("resourceVersion", "")
    is_bad = condition["status"] != "True" and condition["reason"] not in _CALM
    if condition["type"] == ConditionType.STALLED:
        is_bad = condition["status"] == "True"
    suffix = digest_of({"uid": uid_of(about), "version": version, "condition": condition})[:16]
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{key.name}.{suffix}", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "name": key.name,
            "namespace": key.namespace,
            "uid": uid_of(about),
            "resourceVersion": version,
        },
        "type": "Warning" if is_bad else "Normal",
        "reason": condition["reason"],
        "message": f"{condition['type']}={condition['status']}: {condition['message']}"[
            :MAX_MESSAGE
        ],
        "source": {"component": "terrace"},
        "reportingComponent": "terrace.dev/operator",
        "reportingInstance": "terrace",
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


class Recorder:
    """Posts events behind the reconciles, one at a time: what they tell has happened already.

    An event that cannot be written, or that too many others wait before, is logged and not missed.
    """

    def __init__(self, cluster: Cluster, max_waiting: int = MAX_WAITING) -> None:
        self._cluster = cluster
        self._max_waiting = max_waiting
        self._waiting: deque[bytes] = deque()
        self._packer = Packer()
        self._wake = asyncio.Event()

    def tell(self, kind: Kind, after: Manifest, before: Manifest, now: datetime) -> None:
        """Post the transitions between two states of an object soon."""
        for condition in transitions(before.get("status") or {}, after.get("status") or {}):
            if len(self._waiting) >= self._max_waiting:
                log.warning("event not written", object=str(key_of(after)), error="too many wait")
                return
            self._waiting.append(self._packer.pack(event(kind, after, condition, now)))
            self._wake.set()

    async def run(self) -> None:
        """Post for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.drain()

    async def drain(self) -> None:
        """Post what waits now."""
        while self._waiting:
            told = self._packer.unpack(self._waiting.popleft())
            try:
                await self._cluster.create(EVENT, told)
            except ClusterError as error:
                about = told["involvedObject"]
                name = f"{about['namespace']}/{about['name']}"
                log.warning("event not written", object=name, error=str(error))
