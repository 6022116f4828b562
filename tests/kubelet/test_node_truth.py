"""What a replica reads of a real container, and what all three programs log there."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from support.waiting import wait_for
from terrace.cli.demo import NAMESPACE
from terrace_runtime.contract import RUNTIME_PORT, RuntimeReport

if TYPE_CHECKING:
    from support.real_chain import RealChain

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
pytestmark = pytest.mark.timeout(600)


def ready_replica(chain: RealChain) -> dict[str, Any]:
    """The only replica of ``demo``, whatever the tests before did to it."""
    chain.wait_ready("demo")

    def only() -> dict[str, Any]:
        found = [p for p in chain.pods("demo") if "deletionTimestamp" not in p["metadata"]]
        return found[0] if len(found) == 1 else {}

    return wait_for("one replica", only)


def test_a_replica_sees_the_limits_of_its_container(chain: RealChain) -> None:
    pod = ready_replica(chain)
    address = f"http://{pod['status']['podIP']}:{RUNTIME_PORT}"
    told = httpx2.get(f"{address}/v1/runtime", timeout=60).content
    report = RuntimeReport.model_validate_json(told)
    metrics = httpx2.get(f"{address}/metrics", timeout=60).text
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    memory = report.node.memory
    assert memory.limit_bytes is not None
    assert 0 <= int(limits["memory"]) - memory.limit_bytes < PAGE_BYTES  # in whole pages
    assert memory.used_bytes is not None
    assert 0 < memory.used_bytes <= memory.limit_bytes
    assert memory.oom_kills is not None
    assert report.threads <= report.node.cpu.usable
    assert report.node.shared_memory_bytes == 64 << 20  # containerd's
    assert "terrace_runtime_oom_kills_total" in metrics


def lines(chain: RealChain, pod: str, namespace: str = "default") -> list[dict[str, Any]]:
    """Every line of a container's log, as kubelet kept it."""
    text = chain.cluster.kubectl("logs", pod, "-n", namespace)
    return [json.loads(line) for line in text.splitlines()]


def test_one_request_is_found_in_the_logs_that_kubelet_keeps(chain: RealChain) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    answer = httpx2.post(
        f"{chain.url}/chat/completions", json=body, headers={"x-request-id": "seen-1"}, timeout=60
    )
    assert answer.status_code == 200
    replica = ready_replica(chain)
    gateway = chain.program("gateway")["metadata"]["name"]
    for pod, namespace, component in (
        (replica["metadata"]["name"], "default", "runtime"),
        (gateway, NAMESPACE, "gateway"),
    ):

        def told(pod: str = pod, namespace: str = namespace) -> list[dict[str, Any]]:
            return [e for e in lines(chain, pod, namespace) if e.get("request_id") == "seen-1"]

        (line,) = wait_for(f"the line of {pod}", told)
        assert (line["event"], line["component"], line["status"]) == ("request", component, 200)
    operator = chain.program("operator")["metadata"]["name"]
    assert {line["component"] for line in lines(chain, operator, NAMESPACE)} == {"operator"}
