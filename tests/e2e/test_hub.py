"""Models from a hub: in parts, by quantisation, with a token; shared, and freed when unused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from support.chain import ROOT, model
from support.in_a_thread import in_a_thread
from support.origins import Cdn, Hub
from support.split_files import split_file
from support.waiting import wait_for

if TYPE_CHECKING:
    from support.chain import Chain

DEMO = ROOT / "runtime_image/terrace_runtime/demo/chat.gguf"
TOKEN = "hf_very-secret-token"


def from_hub(name: str, uri: str) -> dict[str, Any]:
    wanted = model(name, uri, source={"secretRef": {"name": "hub"}})
    wanted["spec"]["poolRef"] = {"name": "hub"}
    return wanted


def digest(chain: Chain, name: str) -> str:
    chain.wait_condition(name, "Ready", "True", timeout=120)
    found: str = chain.get("im", name)["status"]["model"]["digest"]
    return found


def ask(chain: Chain, name: str) -> str:
    messages = [{"role": "user", "content": "What is a pod?"}]
    body = {"model": name, "messages": messages, "temperature": 0}
    answer: str = chain.ask(body).json()["choices"][0]["message"]["content"]
    return answer


def is_cached(chain: Chain, found: str) -> bool:
    """Whether any volume of the cluster holds the blob."""
    # Folders of pods come and go meanwhile, which a walk survives.
    for at, folders, files in os.walk(chain.cluster.folder.root):
        if Path(at).name == "blobs" and any(n.startswith(found) for n in (*folders, *files)):
            return True
    return False


def test_parts_of_a_hub_are_shared_and_freed(chain: Chain, tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in split_file(DEMO, tmp_path / "c-Q8_0", 3)}
    cdn = Cdn()
    hub = Hub(files=parts, token=TOKEN, cdn=cdn)
    with in_a_thread(cdn, hub):
        pool = yaml.safe_load((ROOT / "examples/01-minimal/1-pool.yaml").read_text())
        pool["metadata"] = {"name": "hub", "namespace": "default"}
        pool["spec"] |= {
            "modelCache": {"size": "1Gi", "deleteUnusedAfterSeconds": 1},
            "access": {"allowedNetworks": ["127.0.0.0/8"]},
            "sources": {"huggingFaceEndpoint": hub.url},
        }
        token = {"name": "hub", "namespace": "default"}
        chain.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": token,
                "stringData": {"token": TOKEN},
            },
            pool,
            from_hub("one", "hf://owner/repo:Q8_0"),
            from_hub("two", "hf://owner/repo@main/c-Q8_0-00001-of-00003.gguf"),
            from_hub("none", "hf://owner/repo:Q2_K"),
        )
        try:
            blob = digest(chain, "one")
            assert blob == digest(chain, "two")
            assert is_cached(chain, blob)
            status = chain.get("im", "one")["status"]
            assert status["model"]["parts"] == 3
            assert len(hub.asked("/resolve/")) == 3
            assert "pod is the smallest thing Kubernetes runs" in ask(chain, "one")
            assert all("Authorization" not in request.headers for request in cdn.requests)
            found = chain.wait_condition("none", "ModelCached", "False", "NotFound")
            assert "c-Q8_0-00001-of-00003.gguf" in found["message"]
            assert TOKEN not in yaml.safe_dump(chain.get("im", "none"))
            chain.delete("im", "one", "two", "none")
            wait_for("the file's end", lambda: not is_cached(chain, blob), timeout=90)
        finally:
            chain.delete("im", "one", "two", "none")
            chain.delete("ipool", "hub")
            chain.delete("secret", "hub")
