"""Runs the controller against the fake cluster in virtual time, with a seeded schedule.

No real clock and no real concurrency: watch events are delivered, items processed and workloads
moved in an order drawn from the seed; a controller that is killed is replaced by a new one.
"""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from simulation.controller.fake_cluster import FakeCluster
from simulation.controller.workloads import Workloads
from support.controller_objects import node
from terrace.controller.cache import Cache
from terrace.controller.config import OperatorConfig
from terrace.controller.context import Context
from terrace.controller.controller import SELECTOR, Controller
from terrace.controller.kinds import (
    CHILD_KINDS,
    LABELLED_KINDS,
    NODE,
    SECRET,
    WATCHED_KINDS,
    Manifest,
    labels_of,
)
from terrace.controller.metrics import Metrics
from terrace.controller.port import ClusterError, UnavailableError
from terrace.controller.progress import ProgressReader
from terrace.controller.report import Reports

if TYPE_CHECKING:
    from collections.abc import Callable

HORIZON_S = 400.0
"""Longest delay that is waited for; past the longest backoff."""
MAX_ROUNDS = 3000
TRUST = {
    "metadata": {"name": "terrace-trust", "namespace": "system"},
    "data": {"ed25519": base64.b64encode(b"A" * 43).decode()},
}
_LABEL, _, _VALUE = SELECTOR.partition("=")


class Simulation:
    """One cluster and the operators that come and go."""

    def __init__(self, seed: int = 0, **config: Any) -> None:
        self.time_s = 0.0
        self.rng = Random(seed)
        self.config = OperatorConfig.model_validate(
            {"pod_name": "o", "pod_namespace": "system", "runtime_image": "terrace/runtime:1"}
            | config
        )
        self.cluster = FakeCluster(lambda: self.now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.workloads = Workloads(self.cluster, lambda: self.now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.cluster.put_new(NODE, node("node-a"))
        self.cluster.put_new(SECRET, TRUST)
        self.num_checkpoints = 0
        self.num_kills = 0
        self.kill_at: int | None = None
        self.fault_rate = 0.0
        self.gap_rate = 0.0
        self.cluster.checkpoint = self._checkpoint
        self.controller = self._new_controller()

    def now(self) -> datetime:
        """Virtual wall clock."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time_s)

    async def settle(self) -> None:
        """Run until nothing is left to do, whatever strikes meanwhile."""
        for _ in range(MAX_ROUNDS):
            try:
                if not await self._round():
                    return
            except asyncio.CancelledError:
                self.num_kills += 1
                self.controller = self._new_controller()
        raise AssertionError(f"not settled after {MAX_ROUNDS} rounds: {self.cluster.writes[-20:]}")

    def calm(self) -> None:
        """No more faults; the next full list finds what gaps have hidden."""
        self.fault_rate = self.gap_rate = 0.0
        self.kill_at = None
        self.controller.is_synced = False

    def children(self) -> dict[str, Any]:
        """All children by kind and name, without what differs between two runs."""
        return {
            f"{kind}/{manifest['metadata']['name']}": _comparable(manifest)
            for kind in CHILD_KINDS
            for manifest in self.cluster.of_kind(kind)
        }

    async def _round(self) -> bool:
        if not self.controller.is_synced:
            try:
                await self.controller.resync()
            except ClusterError:
                self.time_s += 1.0
            return True
        moves: list[Callable[[], bool]] = [self._deliver, self.workloads.step]
        self.rng.shuffle(moves)
        item = self.controller.queue.take()
        if item is not None:
            await self.controller.process(item)
            await self.controller.context.events.drain()
            return True
        if any(move() for move in moves):
            return True
        wait_s = self.controller.queue.wait_s()
        if wait_s is None or wait_s > HORIZON_S:
            return False
        self.time_s += max(wait_s, 0.001)
        return True

    def _deliver(self) -> bool:
        """One to three events of the watches; in a gap they are lost until the next full list."""
        if not self.cluster.events:
            return False
        for _ in range(self.rng.randint(1, 3)):
            if self.cluster.events:
                kind, manifest, is_deleted = self.cluster.events.pop(0)
                is_lost = self.rng.random() < self.gap_rate
                is_watched = kind in WATCHED_KINDS and (
                    kind not in LABELLED_KINDS or labels_of(manifest).get(_LABEL) == _VALUE
                )
                if is_watched and not is_lost:
                    self.controller.see(kind, manifest, is_deleted=is_deleted)
        return True

    def _checkpoint(self, call: str, moment: str) -> None:
        self.num_checkpoints += 1
        if self.num_checkpoints - 1 == self.kill_at:
            raise asyncio.CancelledError
        if self.rng.random() < self.fault_rate:
            raise UnavailableError(f"{call}: lost {moment} its effect")

    def _new_controller(self) -> Controller:
        clock = lambda: self.time_s  # noqa: E731 -- three ports take the same clock
        context = Context(
            self.cluster,
            Cache(),
            self.config,
            Reports(clock, 1e9),
            ProgressReader(self.cluster, clock, 2.0),
            self.now,
        )
        return Controller(context, clock, self.rng, Metrics())


def _comparable(manifest: Manifest) -> Any:
    metadata = {
        field: value
        for field, value in manifest["metadata"].items()
        if field in ("name", "namespace", "labels", "annotations")
    }
    references = manifest["metadata"].get("ownerReferences") or ()
    owners = [(owner["kind"], owner["name"]) for owner in references]
    return metadata, owners, manifest.get("spec"), manifest.get("data")
