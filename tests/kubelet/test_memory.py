"""A replica that outgrows its memory limit: the kernel kills it, the operator plans anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.chain import model, processes_of
from support.waiting import wait_for
from terrace.local.errors import CommandError

if TYPE_CHECKING:
    from support.real_chain import RealChain

pytestmark = pytest.mark.timeout(600)
GROW = """
import os, time
for _ in range(40):
    if os.fork() == 0:
        held = b"x" * (24 << 20)
        time.sleep(600)
time.sleep(600)
"""
"""Many small processes in the replica's container: its own, larger ones are killed before them."""


def test_a_replica_killed_for_its_memory_gets_more_and_says_so(chain: RealChain) -> None:
    chain.apply(model("hungry"))
    try:
        chain.wait_ready("hungry")
        (pod,) = chain.pods("hungry")
        before = plan_of(chain)
        # Awake, it might end by itself, a second after its engine and before it is killed.
        (server,) = processes_of("terrace_runtime serve", pod["status"]["podIP"])
        server.suspend()
        with pytest.raises(CommandError):  # It ends with the container that it runs in.
            chain.cluster.kubectl(
                "exec", pod["metadata"]["name"], "--", "/opt/terrace/bin/python", "-c", GROW,
                timeout_s=120,
            )  # fmt: skip
        plan = wait_for("a plan made anew", lambda: another(chain, before), timeout=120, every=0.3)
        assert int(plan["limits"]["memory"]) >= int(before["limits"]["memory"]) + (256 << 20)
        assert any(reason.startswith("correction:") for reason in plan["reasons"])

        def replaced() -> bool:
            uids = {each["metadata"]["uid"] for each in chain.pods("hungry")}
            ready = chain.get("im", "hungry")["status"].get("readyReplicas")
            return bool(ready == 1 and uids and pod["metadata"]["uid"] not in uids)

        wait_for("a replica with that plan", replaced, timeout=120, every=0.3)
        wait_for("the reason", lambda: "exit code 137 (OOMKilled)" in told(chain), timeout=60)
    finally:
        chain.delete("im", "hungry")


def told(chain: RealChain) -> str:
    return chain.cluster.kubectl(
        "get", "events", "--field-selector", "involvedObject.name=hungry,reason=Crashing",
        "-o", "jsonpath={.items[*].message}",
    )  # fmt: skip


def plan_of(chain: RealChain) -> dict[str, Any]:
    plan: dict[str, Any] = chain.get("im", "hungry")["status"]["plan"]
    return plan


def another(chain: RealChain, before: dict[str, Any]) -> dict[str, Any]:
    plan = plan_of(chain)
    return plan if plan["digest"] != before["digest"] else {}
