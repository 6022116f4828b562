"""Real replicas that take more than was planned: killed once, planned anew, known from then on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.chain import model
from support.waiting import wait_for
from terrace.api.quantity import parse_bytes

if TYPE_CHECKING:
    from support.chain import Chain

MIB = 1 << 20
IMAGE = "test/hungry"
HOG = "import sys, time; held = b'x' * int(sys.argv[1]); time.sleep(3600)"
SCRIPT = f"""
[ "$1" = serve ] && {sys.executable} -c "{HOG}" $BYTES &
exec {sys.executable} -m terrace_runtime "$@"
"""


def measured(chain: Chain, name: str) -> dict[str, Any]:
    found: dict[str, Any] = chain.get("im", name).get("status", {}).get("measured", {})
    return found


def limit_of(chain: Chain, name: str) -> int:
    plan = chain.get("im", name).get("status", {}).get("plan", {})
    return parse_bytes(plan.get("limits", {}).get("memory", "0"))


def make_hungry(chain: Chain, count: int) -> None:
    """An image whose server takes ``count`` bytes that no planner knows of."""
    images = Path(chain.cluster.options.images or "")
    known = json.loads(images.read_text())
    script = SCRIPT.replace("$BYTES", str(count))
    partial = images.with_suffix(".new")
    partial.write_text(json.dumps(known | {IMAGE: ["/bin/sh", "-c", script, IMAGE]}))
    partial.replace(images)  # the node may be reading it


def add_pool(chain: Chain) -> None:
    flavor = {"name": "cpu", "runtimeImage": f"{IMAGE}:1"}
    chain.apply(
        {
            "apiVersion": "terrace.dev/v1alpha1",
            "kind": "InferencePool",
            "metadata": {"name": "hungry", "namespace": "default"},
            "spec": {"flavors": [flavor], "modelCache": {"size": "1Gi"}},
        }
    )


def test_a_replica_over_its_limit_gets_a_larger_plan_and_others_of_the_file_too(
    chain: Chain,
) -> None:
    plain = wait_for("what the demo took", lambda: measured(chain, "demo"), timeout=60)
    assert 0 < plain["hostBytes"] <= plain["plannedHostBytes"]
    limit = limit_of(chain, "demo")
    make_hungry(chain, limit - plain["hostBytes"] + 64 * MIB)
    add_pool(chain)
    try:
        chain.apply(model("hungry", poolRef={"name": "hungry"}))
        wait_for("a larger plan", lambda: limit_of(chain, "hungry") > limit, timeout=120)
        chain.wait_condition("hungry", "Ready", "True", timeout=120)
        assert limit_of(chain, "hungry") == limit + 256 * MIB

        def is_seen() -> bool:
            taken = measured(chain, "hungry")
            return bool(taken) and taken["hostBytes"] > taken["plannedHostBytes"]

        wait_for("what it took beyond its plan", is_seen)
        chain.apply(model("second", poolRef={"name": "hungry"}))
        chain.wait_condition("second", "Ready", "True", timeout=120)
        (pod,) = chain.pods("second")
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
        assert limit_of(chain, "second") > limit
    finally:
        chain.delete("im", "hungry", "second")
        chain.delete("ipool", "hungry")


def test_a_replica_that_no_plan_holds_is_killed_twice_and_no_more(chain: Chain) -> None:
    limit = wait_for("the demo's plan", lambda: limit_of(chain, "demo"), timeout=60)
    make_hungry(chain, limit + 512 * MIB)
    add_pool(chain)
    try:
        chain.apply(model("glutton", poolRef={"name": "hungry"}))
        ready = chain.wait_condition("glutton", "Ready", "False", "Degraded", timeout=120)
        assert "killed for their memory" in ready["message"]
        wait_for("no replica", lambda: not chain.pods("glutton"))
        replicas = chain.get("statefulset", "glutton-cpu")["spec"]["replicas"]
        assert replicas == 0
        make_hungry(chain, 1)
        chain.apply(
            model("glutton", poolRef={"name": "hungry"}, context={"length": 1024, "parallel": 4})
        )
        chain.wait_condition("glutton", "Ready", "True", timeout=120)
    finally:
        chain.delete("im", "glutton")
        chain.delete("ipool", "hungry")
