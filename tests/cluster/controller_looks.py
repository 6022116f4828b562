"""Looking at operators: probes, metrics, lease, and whether anything still changes."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING, Any

from cluster.controller_api import WAIT_S
from cluster.controller_operator import SYSTEM, Operator
from terrace.controller.kinds import (
    LEASE,
    MODEL,
)
from terrace.controller.lease import LEASE_NAME

if TYPE_CHECKING:
    from cluster.controller_api import Manifest
    from cluster.controller_world import World


FAST_LEASE: dict[str, Any] = {"lease_s": 12, "renew_s": 11, "retry_s": 0.3}
"""Its holder may be kept from the processor for seconds, and does not lose it."""


def settle(world: World, operator: Operator) -> None:
    """Wait until the operator has nothing queued and the objects have been still for a second."""

    def versions() -> tuple[str, ...]:
        return tuple(
            child["metadata"]["resourceVersion"] for child in world.children().values()
        ) + tuple(m["metadata"]["resourceVersion"] for m in world.api.items(MODEL, world.namespace))

    last, since = versions(), time.monotonic()
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() - since < 1.0:
        assert time.monotonic() < deadline, "objects keep changing"
        time.sleep(0.1)
        now = versions()
        if now != last or metric(operator, "terrace_operator_queue_in_flight"):
            last, since = now, time.monotonic()


def lease(world: World) -> Manifest:
    return world.api.get(LEASE, SYSTEM, LEASE_NAME) or {}


def holder(world: World) -> str:
    return str((lease(world).get("spec") or {}).get("holderIdentity", ""))


def get(operator: Operator, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*operator.endpoint, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def metric(operator: Operator, name: str) -> float:
    """A sample; 0 where it was never counted."""
    for line in get(operator, "/metrics")[1].decode().splitlines():
        if line.rsplit(" ", 1)[0] == name:
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def answers(operator: Operator) -> bool:
    try:
        return get(operator, "/healthz")[0] == 200
    except OSError:
        return False
