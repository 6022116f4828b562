"""Replicas with volumes of their own: each fetches its file, keeps it, and says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.chain import ROOT, model
from support.in_a_thread import in_a_thread
from support.origins import Hub
from support.waiting import wait_for

if TYPE_CHECKING:
    from support.chain import Chain

EXAMPLE = ROOT / "examples/13-volume-per-replica"
DEMO = ROOT / "runtime_image/terrace_runtime/demo/chat.gguf"
HUB_FILE = "hf://owner/repo/c.gguf"


def test_each_replica_fetches_once_to_its_own_volume(chain: Chain) -> None:
    chain.cluster.apply(EXAMPLE)
    try:
        chain.wait_condition("spread", "Ready", "True")
        uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in chain.pods("spread")}
        assert set(uids) == {"spread-cpu-0", "spread-cpu-1"}
        files = {name: model_file(chain, name) for name in uids}
        assert len({path.parent for path in files.values()}) == len(uids)
        assert ask(chain) == ask(chain)
        before = {name: path.stat().st_mtime_ns for name, path in files.items()}
        chain.cluster.kubectl("delete", "pod", "spread-cpu-1")

        def is_back() -> bool:
            status = chain.get("im", "spread")["status"]
            pod = chain.get("pod", "spread-cpu-1")
            is_new = bool(pod) and pod["metadata"]["uid"] != uids["spread-cpu-1"]
            return is_new and status.get("readyReplicas") == len(uids)

        wait_for("the replica to be back", is_back, timeout=90)
        assert {name: path.stat().st_mtime_ns for name, path in files.items()} == before
    finally:
        chain.delete("im", "spread")
        chain.delete("ipool", "spread")
    wait_for("the claims to go", lambda: not claims(chain))


def test_a_replica_that_cannot_fetch_says_why(chain: Chain) -> None:
    # What the Job sees, the header, is right; the replica reads the whole file.
    file = DEMO.read_bytes()
    hub = Hub(files={"c.gguf": file}, lies={"c.gguf": "0" * 64})
    with in_a_thread(hub):
        chain.apply(pool_with(hub.url), model("spread", HUB_FILE, poolRef={"name": "spread"}))
        try:
            found = wait_for("the reason", lambda: trouble(chain), timeout=90)
            words = "spread-cpu-0 cannot fetch its files: ChecksumMismatch: the sha256 of "
            assert words in found["message"]
        finally:
            chain.delete("im", "spread")
            chain.delete("ipool", "spread")


def pool_with(endpoint: str) -> dict[str, Any]:
    return {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "spread"},
        "spec": {
            "flavors": [{"name": "cpu"}],
            "modelCache": {"sharing": "PerReplica", "size": "1Gi"},
            "sources": {"huggingFaceEndpoint": endpoint},
            "access": {"allowedNetworks": ["127.0.0.0/8"]},
        },
    }


def claims(chain: Chain) -> list[dict[str, Any]]:
    items = json.loads(chain.cluster.kubectl("get", "pvc", "-o", "json"))["items"]
    return [each for each in items if each["metadata"]["name"].startswith("models-spread-")]


def model_file(chain: Chain, pod: str) -> Path:
    """Where the replica's file lies on this machine."""
    claim = chain.get("pvc", f"models-{pod}")
    volume = chain.get("pv", claim["spec"]["volumeName"])["spec"]
    root = Path((volume.get("hostPath") or volume["local"])["path"])
    (found,) = root.glob("blobs/*.gguf")
    return found


def ask(chain: Chain) -> str:
    messages = [{"role": "user", "content": "What is a pod?"}]
    body = {"model": "spread", "messages": messages, "temperature": 0, "max_tokens": 16}
    answer: str = chain.ask(body).json()["choices"][0]["message"]["content"]
    return answer


def trouble(chain: Chain) -> dict[str, Any]:
    found = chain.condition("spread", "Available")
    return found if "cannot fetch" in found.get("message", "") else {}
