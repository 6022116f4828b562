"""Operators that die, wait, lose their lease, are cut off, upgraded and idle."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import os
import time
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest

from cluster.controller_api import eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_looks import FAST_LEASE, answers, get, holder, lease, metric, settle
from cluster.controller_operator import SYSTEM
from cluster.controller_proxy import Proxy
from support.controller_objects import condition
from terrace.controller.kinds import (
    CHILD_KINDS,
    CONFIGMAP,
    JOB,
    LEASE,
    SERVICE,
    STATEFULSET,
)
from terrace.controller.lease import LEASE_NAME
from terrace.local.processes import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.controller_api import Manifest
    from cluster.controller_world import World


STAGES: dict[str, Callable[[World], Any]] = {
    "first sight": lambda w: w.model().get("status", {}).get("conditions"),
    "the Job exists": lambda w: (JOB, "demo-fetch") in w.children(),
    "the file is fetched": lambda w: any(
        p["status"].get("phase") == "Succeeded" for p in w.pods("fetch")
    ),
    "the config exists": lambda w: any(kind == CONFIGMAP for kind, _ in w.children()),
    "the set exists": lambda w: (STATEFULSET, "demo-cpu") in w.children(),
    "a pod exists": lambda w: w.pods(),
    "available": lambda w: condition(w.model(), "Available").get("status") == "True",
}


@pytest.mark.timeout(900)
def test_a_killed_operator_is_taken_over_at_every_stage(world: World) -> None:
    """kill -9 after each stage is seen; two models' worth of stages in one life."""
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2)
    for stage, is_reached in STAGES.items():
        eventually(partial(is_reached, world), stage, step_s=0.005)
        operator.kill()
        operator = world.operators.start()
    world.wait_ready()
    kinds = sorted(str(kind) for kind, _ in world.children())
    assert kinds == sorted(str(kind) for kind in CHILD_KINDS)
    assert len(world.pods()) == 2
    assert len(world.pods("fetch")) == 1


def is_ours(lease: Manifest) -> bool:
    return bool(lease["metadata"]["name"] == LEASE_NAME)


def test_one_of_two_operators_leads_and_the_other_takes_over(world: World) -> None:
    first = world.operators.start("operator-a", **FAST_LEASE)
    eventually(lambda: holder(world) == "operator-a", "the first one leads")
    second = world.operators.start("operator-b", **FAST_LEASE)
    eventually(lambda: answers(second), "the standby serves its probes")
    eventually(lambda: get(second, "/readyz")[0] == 200, "the standby is ready")
    world.add_pool()
    world.add_model()
    world.wait_ready()
    assert metric(first, "terrace_operator_leader") == 1
    assert metric(second, "terrace_operator_leader") == 0
    assert metric(second, "terrace_operator_queue_adds_total") == 0
    first.kill()
    eventually(lambda: holder(world) == "operator-b", "takeover after the lease ran out")
    world.patch(replicas=2)
    eventually(lambda: world.model()["status"].get("readyReplicas") == 2, "the second one works")
    third = world.operators.start("operator-c", **FAST_LEASE)
    eventually(lambda: answers(third), "the third one waits")
    version = lease(world)["metadata"]["resourceVersion"]
    assert second.terminate() == 0
    eventually(lambda: holder(world) == "operator-c", "takeover")
    past = world.api.history(LEASE, SYSTEM, version)
    holders = [each["spec"]["holderIdentity"] for each in past if is_ours(each)]
    assert [name for name, _ in groupby(holders)][-2:] == ["", "operator-c"], "it was not released"


def test_an_operator_that_loses_its_lease_ends(world: World) -> None:
    operator = world.operators.start("operator-a", **FAST_LEASE)
    eventually(lambda: holder(world) == "operator-a", "it leads")
    eventually(lambda: get(operator, "/readyz")[0] == 200, "it works")
    world.api.patch(LEASE, SYSTEM, LEASE_NAME, {"spec": {"holderIdentity": "somebody-else"}})
    assert operator.process.wait(timeout=60) == 3
    assert "leadership lost" in operator.log.read_text()


def test_a_deletion_while_the_watch_is_cut_is_found(world: World) -> None:
    """The API server restarts meanwhile, so the watch's version is gone: 410."""
    host, port = world.cluster.server.removeprefix("https://").rsplit(":", 1)
    with Proxy(host, int(port)) as proxy:
        operator = world.operators.start(through=proxy.port, resync_s=4, leader_election="false")
        world.add_pool()
        world.add_model()
        world.wait_ready()
        proxy.cut()
        before = world.children()
        world.api.delete(SERVICE, world.namespace, "demo")
        record = world.cluster.folder.load().processes["kube-apiserver"]  # type: ignore[union-attr]
        os.kill(record.pid, 9)
        eventually(lambda: not is_alive(record), "the API server is gone")
        world.cluster.up()
        proxy.restore()
        eventually(lambda: world.children().keys() == before.keys(), "the Service is back")
        world.wait_ready()
        assert operator.process.poll() is None
        assert metric(operator, 'terrace_operator_missed_deletions_total{resource="services"}') == 1


def test_a_new_node_and_an_operator_upgrade_restart_nothing(world: World) -> None:
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    pods = world.uids()
    world.kubelet.add_node("node-big", cpu="128", memory="512Gi")
    operator.terminate()
    upgraded = "terrace/runtime:0.2.0"
    operator = world.operators.start(runtime_image=upgraded)

    def image() -> str:
        spec = world.children()[STATEFULSET, "demo-cpu"]["spec"]["template"]["spec"]
        return str(spec["containers"][0]["image"])

    eventually(lambda: image() == upgraded, "the set has the new image")
    settle(world, operator)
    assert world.uids() == pods
    world.wait_ready()


def test_an_idle_operator_writes_nothing_but_its_lease(world: World) -> None:
    operator = world.operators.start(resync_s=2, report_s=2)
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    settle(world, operator)
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1))
    calls = 'terrace_operator_api_calls_total{code="200",resource="pods",verb="list"}'
    lists = metric(operator, calls)
    eventually(lambda: metric(operator, calls) >= lists + 6, "it looked at everything six times")
    user = f"system:serviceaccount:{SYSTEM}:terrace-operator"
    writes = [
        (event.verb, event.resource, event.name)
        for event in world.cluster.audit_events()
        if event.is_write
        and event.user == user
        and event.received >= begin
        and event.namespace in (world.namespace, SYSTEM)  # Others may still be going away.
    ]
    assert writes
    assert {resource for _, resource, _ in writes} == {"leases"}
