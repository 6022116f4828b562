"""The operator's log while it works on a real cluster: JSON, whatever library speaks."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cluster.controller_fixtures import api, kubelet, operators, world  # noqa: F401 -- fixtures

if TYPE_CHECKING:
    from cluster.controller_world import World


def test_kopf_and_we_speak_one_json_object_per_line(world: World) -> None:
    operator = world.operators.start(log_level="debug")
    world.add_pool()
    world.add_model()
    world.wait_ready()
    assert operator.terminate() == 0
    lines = [json.loads(line) for line in operator.log.read_text().split("\n")[:-1]]
    assert {line["component"] for line in lines} == {"operator"}
    loggers = {line["logger"].partition(".")[0] for line in lines}
    assert {"kopf", "terrace"} <= loggers
    assert "kubernetes" not in loggers  # It would tell whole Secrets.
    named = {line["k8s_ref"]["name"] for line in lines if line["logger"] == "kopf.objects"}
    assert "demo" in named
    assert all(line["ts"].endswith("Z") and line["event"] for line in lines)
