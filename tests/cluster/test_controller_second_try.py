"""On the real control plane: replicas that are killed for their memory get one larger plan."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cluster.controller_api import Manifest, eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_kubelet import crashed
from cluster.controller_looks import settle
from support.controller_objects import condition
from terrace.api import names
from terrace.api.quantity import parse_bytes
from terrace.controller.kinds import STATEFULSET
from terrace.planner.correction import LEAST_GUESS_BYTES

if TYPE_CHECKING:
    from cluster.controller_operator import Operator
    from cluster.controller_world import World


def killed(pod: Manifest) -> Manifest:
    """A replica that went over its memory limit."""
    status = crashed(pod, 137, "")
    status["containerStatuses"][0]["lastState"]["terminated"]["reason"] = "OOMKilled"
    return status


def limit_of(pod: Manifest) -> int:
    (container,) = pod["spec"]["containers"]
    return parse_bytes(container["resources"]["limits"]["memory"])


def test_a_plan_that_was_too_small_gets_more_once(world: World, operator: Operator) -> None:
    limits: list[int] = []

    def serve(pod: Manifest) -> Manifest | None:
        limits.append(limit_of(pod))
        return killed(pod) if limit_of(pod) == limits[0] else None

    world.kubelet.serve = serve
    world.add_pool()
    world.add_model(replicas=2)
    world.wait_ready()
    assert {limit_of(pod) - limits[0] for pod in world.pods()} == {LEAST_GUESS_BYTES}
    settle(world, operator)
    assert "pending" not in world.model()["status"]["plan"]


def test_a_second_plan_that_is_too_small_is_given_up_and_nothing_restarts(
    world: World, operator: Operator
) -> None:
    world.kubelet.serve = killed
    world.add_pool()
    started = len(world.kubelet.started)
    world.add_model()
    ready = world.wait("Ready", "False", "Degraded")
    assert "killed for their memory" in ready["message"]
    assert "spec.context.length" in ready["message"]
    eventually(lambda: not world.pods(), "the replica goes")
    settle(world, operator)
    (stateful_set,) = world.api.items(STATEFULSET, world.namespace)
    assert stateful_set["spec"]["replicas"] == 0
    assert stateful_set["metadata"]["annotations"][names.ANNOTATION_GIVEN_UP] == "host"
    assert (
        json.loads(stateful_set["metadata"]["annotations"][names.ANNOTATION_PLAN])["attempt"] == 1
    )
    # One fetch, and a replica of each plan.
    assert len(world.kubelet.started) - started == 3
    assert condition(world.model(), "Stalled")["reason"] == "Degraded"
    world.kubelet.serve = lambda _pod: None
    world.patch(context={"length": 512})
    world.wait_ready()
