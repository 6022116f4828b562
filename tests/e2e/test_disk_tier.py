"""The disk tier as a user meets it: what a conversation has cost outlives the pod that paid it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2
import pytest
import yaml

from support.chain import ROOT, kill_9, model, processes_of
from support.waiting import wait_for
from terrace.api.names import Key
from terrace.controller.trust import SECRET_FIELD
from terrace.gateway.identity import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.chain import Chain

DEMO = ROOT / "runtime_image/terrace_runtime/demo"
EXAMPLE = ROOT / "examples/02-disk-heavy"
VERIFIED: list[dict[str, Any]] = json.loads((DEMO / "verified.json").read_text(encoding="utf-8"))
NEEDLE = max((c for c in VERIFIED if c["kind"] == "needle"), key=lambda c: len(str(c["messages"])))
BLOCK = 32
DISK = {"spillThreshold": "64Mi", "maxDisk": "256Mi", "kvBlockTokens": BLOCK}


class Answer(NamedTuple):
    text: str
    prompt_tokens: int
    cached_tokens: int
    tier: str


def ask(chain: Chain, name: str, messages: list[Any], max_tokens: int = 64) -> Answer:
    """One answer, with what was found in the cache by body and by header."""
    return answer_of(chain.ask(question(name, messages, max_tokens)))


def ask_as(chain: Chain, tenant: str, name: str, pod: dict[str, Any]) -> Answer:
    """The needle's answer for a tenant: asked of the replica, with what the gateway would sign."""
    secret = chain.get("secret", "terrace-trust", "terrace-system")
    text = base64.b64decode(secret["data"][SECRET_FIELD]).decode()
    signer = Signer(base64.urlsafe_b64decode(text + "=="), time.time)
    token = signer.token(tenant, "interactive", Key("default", name))
    url = f"http://{pod['status']['podIP']}:8000/v1"
    body = question(name, NEEDLE["messages"], 64)
    headers = {"x-terrace-identity": token}
    return answer_of(
        httpx2.post(f"{url}/chat/completions", json=body, headers=headers, timeout=120)
    )


def question(name: str, messages: list[Any], max_tokens: int) -> dict[str, Any]:
    return {"model": name, "messages": messages, "temperature": 0, "max_tokens": max_tokens}


def answer_of(reply: httpx2.Response) -> Answer:
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert reply.headers["x-terrace-cached-tokens"] == str(cached)
    return Answer(
        answer["choices"][0]["message"]["content"].strip(),
        usage["prompt_tokens"],
        cached,
        reply.headers["x-terrace-cached-tier"],
    )


def disk_bytes(chain: Chain, pod: dict[str, Any]) -> int:
    """Bytes of the disk tier's files, where the pod's claim lies on this machine."""
    return sum(file.stat().st_size for file in kv_folder(chain, pod).rglob("*") if file.is_file())


def kv_folder(chain: Chain, pod: dict[str, Any]) -> Path:
    claim = chain.get("pvc", f"kv-{pod['metadata']['name']}")
    volume = chain.get("pv", claim["spec"]["volumeName"])
    return Path(volume["spec"]["local"]["path"])


def cache_report(pod: dict[str, Any]) -> dict[str, Any]:
    """What the replica tells of its prefix cache."""
    url = f"http://{pod['status']['podIP']}:8000/v1/runtime"
    report: dict[str, Any] = httpx2.get(url, timeout=60).json()["engine"]["cache"]
    return report


def block_bytes(pod: dict[str, Any]) -> int:
    tiers = {t["name"]: t for t in cache_report(pod)["tiers"]}
    return int(tiers["host"]["used_bytes"]) // max(1, int(tiers["host"]["blocks"]))


def ready_pod(chain: Chain, name: str, other_than: str = "") -> dict[str, Any]:
    """The model's replica, ready, once it is another than ``other_than`` (a uid)."""

    def probe() -> dict[str, Any]:
        for pod in chain.pods(name):
            conditions = pod["status"].get("conditions", ())
            is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            if is_ready and pod["metadata"]["uid"] != other_than:
                return pod
        return {}

    return wait_for(f"a ready replica of {name}", probe, timeout=120, every=0.3)


def asked_and_spilled(chain: Chain, name: str) -> tuple[dict[str, Any], Answer]:
    """A long conversation, and its blocks on disk."""
    pod = ready_pod(chain, name)
    cold = ask(chain, name, NEEDLE["messages"])
    num_blocks = cold.prompt_tokens // BLOCK
    wait_for("blocks in the host tier", lambda: block_bytes(pod))
    wanted = num_blocks * block_bytes(pod)
    wait_for("all blocks on disk", lambda: disk_bytes(chain, pod) >= wanted)
    return pod, cold


def assert_from_disk(cold: Answer, warm: Answer) -> None:
    assert warm.tier == "disk"
    # The last token is always computed: it gives the logits of the first new one.
    assert warm.cached_tokens >= (cold.prompt_tokens - 1) // BLOCK * BLOCK
    assert warm.text == cold.text


def crash(chain: Chain, pod: dict[str, Any]) -> None:
    """kill -9 the replica's server, and wait until its container is ready again."""
    name = pod["metadata"]["labels"]["terrace.dev/model"]
    restarts = pod["status"]["containerStatuses"][0]["restartCount"]
    for server in processes_of("terrace_runtime serve", pod["status"]["podIP"]):
        kill_9(server)

    def is_back() -> bool:
        status = ready_pod(chain, name)["status"]["containerStatuses"][0]
        return bool(status["restartCount"] > restarts)

    wait_for("the container to come back", is_back, timeout=60)


@pytest.fixture(scope="module")
def kept(chain: Chain) -> Iterator[Chain]:
    """A model called ``kept`` with a disk tier."""
    chain.apply(model("kept", offload=DISK, context={"length": 4096, "parallel": 2}))
    try:
        chain.wait_condition("kept", "Ready", "True")
        yield chain
    finally:
        chain.delete("im", "kept")


def test_a_deleted_pod_s_successor_finds_the_conversation_on_disk(kept: Chain) -> None:
    pod, cold = asked_and_spilled(kept, "kept")
    assert cold.text == NEEDLE["answer"].strip()
    kept.delete("pod", pod["metadata"]["name"])
    ready_pod(kept, "kept", other_than=pod["metadata"]["uid"])
    assert_from_disk(cold, ask(kept, "kept", NEEDLE["messages"]))


def test_a_model_scaled_to_zero_and_back_finds_it_too(kept: Chain) -> None:
    pod, cold = asked_and_spilled(kept, "kept")
    kept.cluster.kubectl("scale", "im/kept", "--replicas=0")
    wait_for("no replica", lambda: not kept.pods("kept"))
    kept.cluster.kubectl("scale", "im/kept", "--replicas=1")
    ready_pod(kept, "kept", other_than=pod["metadata"]["uid"])
    assert_from_disk(cold, ask(kept, "kept", NEEDLE["messages"]))


def test_a_runtime_killed_while_it_spills_starts_with_what_was_whole(kept: Chain) -> None:
    pod = ready_pod(kept, "kept")
    before = disk_bytes(kept, pod)
    story = [{"role": "user", "content": "Tell me a story about a llama named Inti. " * 60}]
    cold = ask(kept, "kept", story, max_tokens=1)
    wait_for("the first new bytes", lambda: disk_bytes(kept, pod) > before, every=0.005)
    crash(kept, pod)
    again = ask(kept, "kept", story, max_tokens=1)
    assert again.text == cold.text
    assert again.cached_tokens <= again.prompt_tokens
    pod = ready_pod(kept, "kept")
    assert cache_report(pod)["rejected_blocks"] <= 1 + cold.prompt_tokens // BLOCK
    # What was whole before the kill is still there.
    assert ask(kept, "kept", NEEDLE["messages"]).text == NEEDLE["answer"].strip()


def test_a_grown_disk_tier_grows_the_claim_and_keeps_the_conversation(kept: Chain) -> None:
    pod, cold = asked_and_spilled(kept, "kept")
    claim = f"kv-{pod['metadata']['name']}"
    before = kept.get("pvc", claim)
    patch = json.dumps({"spec": {"offload": {"maxDisk": "512Mi"}}})
    kept.cluster.kubectl("patch", "im", "kept", "--type=merge", "-p", patch)
    ready_pod(kept, "kept", other_than=pod["metadata"]["uid"])
    after = kept.get("pvc", claim)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    sizes = [c["spec"]["resources"]["requests"]["storage"] for c in (before, after)]
    assert sizes == ["528Mi", "800Mi"]
    assert_from_disk(cold, ask(kept, "kept", NEEDLE["messages"]))


def test_another_tenant_finds_nothing_until_the_pool_lets_tenants_share(kept: Chain) -> None:
    pod = ready_pod(kept, "kept")
    first = ask_as(kept, "a", "kept", pod)
    assert first.text == NEEDLE["answer"].strip()
    assert ask_as(kept, "b", "kept", pod).cached_tokens == 0
    assert ask_as(kept, "a", "kept", pod).cached_tokens > first.prompt_tokens - 2 * BLOCK
    demo = ready_pod(kept, "demo")["metadata"]["uid"]
    share(kept, "Pool")
    try:
        pod = ready_pod(kept, "kept", other_than=pod["metadata"]["uid"])
        ask_as(kept, "a", "kept", pod)
        assert ask_as(kept, "b", "kept", pod).cached_tokens > first.prompt_tokens - 2 * BLOCK
        # It is of the same pool, and other tests ask it.
        demo = ready_pod(kept, "demo", other_than=demo)["metadata"]["uid"]
    finally:
        share(kept, "Tenant")
        ready_pod(kept, "kept", other_than=pod["metadata"]["uid"])
    ready_pod(kept, "demo", other_than=demo)


def share(chain: Chain, isolation: str) -> None:
    patch = json.dumps({"spec": {"access": {"cacheIsolation": isolation}}})
    chain.cluster.kubectl("patch", "ipool", "default", "--type=merge", "-p", patch)


def test_a_change_of_block_size_finds_nothing_and_serves_all_the_same(kept: Chain) -> None:
    pod, cold = asked_and_spilled(kept, "kept")
    patch = json.dumps({"spec": {"offload": {"kvBlockTokens": 64}}})
    kept.cluster.kubectl("patch", "im", "kept", "--type=merge", "-p", patch)
    ready_pod(kept, "kept", other_than=pod["metadata"]["uid"])
    again = ask(kept, "kept", NEEDLE["messages"])
    assert again.cached_tokens == 0
    assert again.text == cold.text


def test_the_claim_goes_with_its_model(chain: Chain) -> None:
    chain.apply(model("brief", offload=DISK))
    chain.wait_condition("brief", "Ready", "True")
    assert chain.get("pvc", "kv-brief-cpu-0")
    chain.delete("im", "brief")
    wait_for("no claim", lambda: not chain.get("pvc", "kv-brief-cpu-0"), timeout=60)


def test_replicas_that_share_a_claim_keep_to_their_own_folders(chain: Chain) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mine", "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    offload = {**DISK, "disk": {"claimName": "mine"}}
    chain.apply(claim, model("sharing", offload=offload, replicas=2))
    try:
        chain.wait_condition("sharing", "Ready", "True")
        volume = chain.get("pv", chain.get("pvc", "mine")["spec"]["volumeName"])
        folder = Path(volume["spec"]["local"]["path"])
        assert {p.name for p in folder.iterdir()} == {"sharing-cpu-0", "sharing-cpu-1"}
        assert {p.name for p in folder.glob("*/lock")} == {"lock"}
    finally:
        chain.delete("im", "sharing")
        chain.delete("pvc", "mine")


def test_an_ephemeral_disk_tier_outlives_a_crash_and_not_its_pod(chain: Chain) -> None:
    offload = {**DISK, "disk": {"ephemeral": True}}
    chain.apply(model("passing", offload=offload, context={"length": 4096, "parallel": 1}))
    try:
        chain.wait_condition("passing", "Ready", "True")
        pod = ready_pod(chain, "passing")
        assert not chain.get("pvc", "kv-passing-cpu-0")
        cold = ask(chain, "passing", NEEDLE["messages"])

        def is_spilled() -> bool:
            # The replica reports when it has worked.
            ask(chain, "passing", [{"role": "user", "content": "Hi"}], max_tokens=1)
            tiers = {tier["name"]: tier for tier in cache_report(pod)["tiers"]}
            return int(tiers["disk"]["blocks"]) >= cold.prompt_tokens // BLOCK

        wait_for("all blocks on disk", is_spilled)
        crash(chain, pod)
        assert_from_disk(cold, ask(chain, "passing", NEEDLE["messages"]))
        chain.delete("pod", pod["metadata"]["name"])
        ready_pod(chain, "passing", other_than=pod["metadata"]["uid"])
        assert ask(chain, "passing", NEEDLE["messages"]).cached_tokens == 0
    finally:
        chain.delete("im", "passing")


def test_the_disk_heavy_example_runs_as_it_is_written(chain: Chain) -> None:
    chain.cluster.kubectl("apply", "-f", str(EXAMPLE))
    try:
        chain.wait_condition("disk-heavy", "Ready", "True")
        written = yaml.safe_load((EXAMPLE / "1-pool.yaml").read_text())["spec"]["offload"]
        assert written == {
            "profile": "DiskHeavy",
            "spillThreshold": "512Mi",
            "maxDisk": "64Gi",
            "prefetchWindow": "128Mi",
            "kvBlockTokens": 32,
            "kvTypes": {"key": "q8_0", "value": "q4_0"},
        }
        plan = chain.get("im", "disk-heavy")["status"]["plan"]
        assert plan["tiers"]["host"] == 512 << 20
        assert plan["tiers"]["disk"] == 64 << 30
        assert plan["tiers"]["prefetchWindow"] == 128 << 20
        assert plan["kvBlockTokens"] == 32
        assert plan["kvTypes"] == {"key": "q8_0", "value": "q4_0"}
        assert plan["weights"] == "paged"
        cache = wait_for("a report", lambda: chain.get("im", "disk-heavy")["status"].get("cache"))
        assert cache["reuse"] == "blocks"
        limits = {tier["name"]: tier["limitBytes"] for tier in cache["tiers"]}
        assert 500 << 20 < limits["host"] <= 512 << 20
        assert limits["disk"] > 10 << 30
        claim = chain.get("pvc", "kv-disk-heavy-cpu-0")
        assert claim["status"]["phase"] == "Bound"
        pod, cold = asked_and_spilled(chain, "disk-heavy")
        assert disk_bytes(chain, pod) < 1 << 30  # 64Gi is a limit, not what is taken.
        chain.delete("pod", pod["metadata"]["name"])
        ready_pod(chain, "disk-heavy", other_than=pod["metadata"]["uid"])
        assert_from_disk(cold, ask(chain, "disk-heavy", NEEDLE["messages"]))
    finally:
        chain.cluster.kubectl("delete", "-f", str(EXAMPLE), "--ignore-not-found", "--wait=true")
