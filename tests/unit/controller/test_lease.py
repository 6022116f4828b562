"""Leader election on the fake cluster, in virtual time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from simulation.controller.fake_cluster import FakeCluster
from support.virtual_time import in_virtual_time
from support.virtual_time import now as seconds
from terrace.api.names import Key
from terrace.controller.config import OperatorConfig
from terrace.controller.kinds import LEASE, Manifest
from terrace.controller.lease import LEASE_NAME, LeaderLease, LeaseLostError
from terrace.controller.port import UnavailableError

KEY = Key("system", LEASE_NAME)


def now() -> datetime:
    return datetime.now(tz=UTC)


def lease(cluster: FakeCluster, name: str) -> LeaderLease:
    config = OperatorConfig(
        pod_name=name,
        pod_namespace="system",
        runtime_image="i",
        lease_s=1,
        renew_s=0.3,
        retry_s=0.02,
    )
    return LeaderLease(cluster, config, seconds, now)


def spec(cluster: FakeCluster) -> Manifest:
    found: Manifest = cluster.objects[LEASE, KEY]["spec"]
    return found


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(lambda: "2026-01-01T00:00:00Z")


@in_virtual_time
async def test_one_of_two_candidates_leads(cluster: FakeCluster) -> None:
    first, second = lease(cluster, "a"), lease(cluster, "b")
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.acquire(), 1.3)
    assert (first.is_held, second.is_held, second.is_checked) == (True, False, True)
    assert spec(cluster)["holderIdentity"] == "a"
    holding.cancel()


@in_virtual_time
async def test_a_silent_leader_is_replaced_after_the_lease_s_length(cluster: FakeCluster) -> None:
    await lease(cluster, "a").acquire()
    second, started_at = lease(cluster, "b"), seconds()
    await asyncio.wait_for(second.acquire(), 5)
    assert 1 <= seconds() - started_at < 1.1
    assert spec(cluster)["holderIdentity"] == "b"
    assert spec(cluster)["leaseTransitions"] == 2


@in_virtual_time
async def test_a_released_lease_is_taken_at_once(cluster: FakeCluster) -> None:
    first, second = lease(cluster, "a"), lease(cluster, "b")
    await first.acquire()
    await first.release()
    assert not first.is_held
    await asyncio.wait_for(second.acquire(), 0.5)


@in_virtual_time
async def test_a_renewal_that_was_under_way_does_not_keep_the_lease(cluster: FakeCluster) -> None:
    first = lease(cluster, "a")
    await first.acquire()
    renewals = 1

    def renewed_meanwhile(call: str, moment: str) -> None:
        nonlocal renewals
        if (call.partition(" ")[0], moment) == ("replace", "before") and renewals:
            renewals -= 1
            cluster.edit(LEASE, KEY, lambda live: live["spec"].update(renewTime="a bit later"))

    cluster.checkpoint = renewed_meanwhile
    await first.release()
    assert renewals == 0
    assert spec(cluster)["holderIdentity"] == ""


@in_virtual_time
async def test_release_leaves_the_lease_of_another_alone(cluster: FakeCluster) -> None:
    first = lease(cluster, "a")
    await first.acquire()
    cluster.edit(LEASE, KEY, lambda live: live["spec"].update(holderIdentity="b"))
    await first.release()
    assert spec(cluster)["holderIdentity"] == "b"


@in_virtual_time
async def test_a_stolen_lease_ends_the_leader(cluster: FakeCluster) -> None:
    first = lease(cluster, "a")
    await first.acquire()
    cluster.edit(LEASE, KEY, lambda live: live["spec"].update(holderIdentity="b"))
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(first.hold(), 2)
    assert not first.is_held


@in_virtual_time
async def test_short_connection_errors_are_survived_and_long_ones_are_not(
    cluster: FakeCluster,
) -> None:
    first = lease(cluster, "a")
    await first.acquire()
    failures = 3

    def flaky(call: str, _moment: str) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise UnavailableError(call)

    cluster.checkpoint = flaky
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(first.hold(), 0.6)
    assert first.is_held
    failures, started_at = 10**6, seconds()
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(first.hold(), 5)
    assert seconds() - started_at == pytest.approx(0.3, abs=0.03)


@in_virtual_time
async def test_the_same_pod_takes_its_lease_back_after_a_restart(cluster: FakeCluster) -> None:
    await lease(cluster, "a").acquire()
    await asyncio.wait_for(lease(cluster, "a").acquire(), 0.5)
    assert spec(cluster)["leaseTransitions"] == 1
