"""Events are told behind the reconciles: in order, bounded, and never missed when they fail."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from simulation.controller.fake_cluster import FakeCluster
from support.controller_objects import model
from terrace.controller import events
from terrace.controller.kinds import EVENT, MODEL
from terrace.controller.port import UnavailableError

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stalled(reason: str, version: int = 1) -> Manifest:
    made = model()
    made["metadata"] |= {"uid": "u", "resourceVersion": str(version)}
    condition = {"type": "Stalled", "status": "True", "reason": reason, "message": reason}
    return {**made, "status": {"conditions": [condition]}}


def reasons(cluster: FakeCluster) -> list[str]:
    return [found["reason"] for kind, found, _ in cluster.events if kind == EVENT]


async def test_nothing_is_written_until_the_recorder_runs_and_then_in_order() -> None:
    cluster = FakeCluster(NOW.isoformat)
    recorder = events.Recorder(cluster)
    recorder.tell(MODEL, stalled("First", 1), model(), NOW)
    recorder.tell(MODEL, stalled("Second", 2), stalled("First", 1), NOW)
    assert reasons(cluster) == []
    await recorder.drain()
    assert reasons(cluster) == ["First", "Second"]


async def test_one_that_cannot_be_written_does_not_hold_up_the_next() -> None:
    cluster = FakeCluster(NOW.isoformat)

    def refuse(call: str, moment: str) -> None:
        cluster.checkpoint = lambda _call, _moment: None
        raise UnavailableError(f"{call} {moment}")

    cluster.checkpoint = refuse
    recorder = events.Recorder(cluster)
    recorder.tell(MODEL, stalled("Lost"), model(), NOW)
    recorder.tell(MODEL, stalled("Told", 2), stalled("Lost"), NOW)
    await recorder.drain()
    assert reasons(cluster) == ["Told"]


async def test_no_more_wait_than_memory_is_meant_for() -> None:
    cluster = FakeCluster(NOW.isoformat)
    recorder = events.Recorder(cluster, max_waiting=2)
    for version in range(5):
        recorder.tell(MODEL, stalled(f"Reason{version}", version), model(), NOW)
    await recorder.drain()
    assert reasons(cluster) == ["Reason0", "Reason1"]
