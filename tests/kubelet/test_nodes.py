"""Real nodes: kubelet and containerd in namespaces of their own, as their users meet them."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from support.tiny_image import IMAGE
from support.waiting import wait_for

if TYPE_CHECKING:
    from terrace.local.cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)


def objects(cluster: LocalCluster, *words: str) -> Any:
    return json.loads(cluster.kubectl("get", *words, "-o", "json"))


def apply(cluster: LocalCluster, *manifests: dict[str, Any]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(items))


def conditions(thing: dict[str, Any]) -> dict[str, str]:
    return {item["type"]: item["status"] for item in thing["status"].get("conditions", [])}


def test_both_nodes_are_ready(kubelet_cluster: LocalCluster) -> None:
    nodes = objects(kubelet_cluster, "nodes")["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["node0", "node1"]
    for node in nodes:
        assert conditions(node)["Ready"] == "True"
        assert node["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("containerd://")


def answer(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            text: str = response.read().decode()
            return text
    except OSError:
        return ""


def test_this_machine_reaches_a_pod(tiny_image_loaded: LocalCluster) -> None:
    cluster = tiny_image_loaded
    apply(cluster, {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reached"},
        "spec": {"containers": [{"name": "main", "image": IMAGE, "args": ["serve", "/"],
                                 "securityContext": {"runAsUser": 0}}]},
    })  # fmt: skip
    cluster.kubectl("wait", "--for=condition=Ready", "pod/reached", "--timeout=60s")
    address = objects(cluster, "pod", "reached")["status"]["podIP"]
    url = f"http://{address}:8080/"
    assert wait_for("its answer", lambda: answer(url)) == "reached\n"
