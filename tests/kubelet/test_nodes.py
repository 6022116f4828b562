"""Real nodes: kubelet and containerd in namespaces of their own, as their users meet them."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from support.real_nodes import (
    Json,
    answer,
    apply,
    cluster_ip,
    conditions,
    deployment,
    node_of,
    objects,
    pod,
    service,
    stateful_set,
)
from support.tiny_image import tiny_image
from support.waiting import wait_for
from terrace.cli.local import app as local_commands
from terrace.local.cluster import LocalCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster(tiny_image_loaded: LocalCluster) -> LocalCluster:
    return tiny_image_loaded


@pytest.fixture(scope="module")
def served(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """With a hardened StatefulSet ``kept`` that has a volume, behind a Service."""
    apply(cluster, service("kept"), stateful_set("kept"))
    cluster.kubectl("rollout", "status", "statefulset/kept", "--timeout=240s", timeout_s=260)
    yield cluster
    cluster.kubectl("delete", "statefulset/kept", "service/kept", "pvc/data-kept-0")


def until_it_works(manifest: Json) -> Json:
    """kube-proxy and the cluster's DNS hear of a Service a moment after kubectl does."""
    manifest["spec"]["restartPolicy"] = "OnFailure"
    return manifest


def finished(cluster: LocalCluster, name: str) -> str:
    """The log of a pod that runs to its end, deleted afterwards."""
    wait_for(
        f"the end of {name}",
        lambda: objects(cluster, "pod", name)["status"]["phase"] in {"Succeeded", "Failed"},
        timeout=120,
    )
    log = cluster.kubectl("logs", name)
    cluster.kubectl("delete", "pod", name, "--wait=false")
    return log


def test_both_nodes_are_ready(kubelet_cluster: LocalCluster) -> None:
    nodes = objects(kubelet_cluster, "nodes")["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["node0", "node1"]
    for node in nodes:
        assert conditions(node)["Ready"] == "True"
        assert node["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("containerd://")
    assert not kubelet_cluster.up(), "all of it runs already"


def test_this_machine_reaches_a_pod_and_its_service(served: LocalCluster) -> None:
    address = objects(served, "pod", "kept-0")["status"]["podIP"]
    for url in (f"http://{address}:8080/", f"http://{cluster_ip(served, 'kept')}/"):
        assert wait_for(url, partial(answer, url), timeout=60) == "kept-0\n"


def test_a_pod_reaches_a_service_by_address_and_by_name(served: LocalCluster) -> None:
    urls = [f"http://{cluster_ip(served, 'kept')}/", "http://kept/", "http://kept.default/"]
    for node in ("node0", "node1"):
        asking = until_it_works(pod(f"asks-on-{node}", "get", *urls))
        asking["spec"]["nodeName"] = node
        apply(served, asking)
    for node in ("node0", "node1"):
        assert finished(served, f"asks-on-{node}") == "kept-0\n" * 3


def test_a_pod_reaches_the_api_server_by_its_service(cluster: LocalCluster) -> None:
    apply(cluster, until_it_works(pod("asks-api", "api", "/version")))
    assert '"gitVersion": "v1.36.3"' in finished(cluster, "asks-api")


def test_logs_and_exec_and_port_forward_work(served: LocalCluster) -> None:
    assert served.kubectl("logs", "kept-0") == "kept-0 serves as user 65532\n"
    said = served.kubectl("exec", "kept-0", "--", "/program", "get", "http://localhost:8080/")
    assert said == "kept-0\n"
    command = served.kubectl_command("port-forward", "pod/kept-0", ":8080")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forwarding:
        try:
            assert forwarding.stdout
            match = re.search(r"127\.0\.0\.1:(\d+)", forwarding.stdout.readline())
            assert match
            url = f"http://127.0.0.1:{match[1]}/"
            assert wait_for(url, lambda: answer(url), timeout=60) == "kept-0\n"
        finally:
            forwarding.terminate()


def test_the_volume_belongs_to_the_pods_group_and_lies_on_its_node(served: LocalCluster) -> None:
    claim = objects(served, "pvc", "data-kept-0")
    volume = objects(served, "pv", claim["spec"]["volumeName"])
    node = node_of(served, "kept")
    folder = served.folder.node / node / "volumes" / volume["metadata"]["name"]
    assert volume["spec"]["local"]["path"] == str(folder)
    assert (folder / "starts").stat().st_gid == 65532


def test_a_drain_moves_a_pod_to_the_other_node(cluster: LocalCluster) -> None:
    apply(cluster, deployment("moving"))
    before = wait_for("the pod", lambda: node_of(cluster, "moving"), timeout=120)
    try:
        cluster.kubectl("drain", before, "--pod-selector=app=moving", "--delete-emptydir-data",
                        "--timeout=120s", timeout_s=150)  # fmt: skip
        after = wait_for("the pod elsewhere", lambda: node_of(cluster, "moving"), timeout=120)
    finally:
        cluster.kubectl("uncordon", before)
    assert {before, after} == {"node0", "node1"}
    cluster.kubectl("delete", "deployment", "moving", "--wait=false")


def test_a_pod_over_its_memory_limit_is_killed_for_it(cluster: LocalCluster) -> None:
    hungry = pod("hungry", "eat", "64", resources={"limits": {"memory": "32Mi"}})
    # containerd may tell of the end before it tells why: a further try says it.
    hungry["spec"]["restartPolicy"] = "OnFailure"
    apply(cluster, hungry, pod("fed", "eat", "16", resources={"limits": {"memory": "64Mi"}}))
    wait_for("its end", lambda: "OOMKilled" in ends(cluster, "hungry"), timeout=120)
    wait_for("a meal", lambda: "16 MiB taken" in cluster.kubectl("logs", "fed"), timeout=60)
    assert ends(cluster, "fed") == set()
    cluster.kubectl("delete", "pod", "fed", "hungry", "--now", "--wait=false")


def ends(cluster: LocalCluster, name: str) -> set[str]:
    """Why containers of a pod ended."""
    states = [
        each.get(key) or {}
        for each in objects(cluster, "pod", name)["status"].get("containerStatuses", [])
        for key in ("state", "lastState")
    ]
    return {state["terminated"]["reason"] for state in states if "terminated" in state}


def test_an_image_that_is_there_is_not_loaded_again(cluster: LocalCluster, tmp_path: Path) -> None:
    said: list[str] = []
    again = LocalCluster(cluster.name, directory=cluster.folder.root, report=said.append)
    again.load_images([tiny_image(tmp_path)])
    assert said == ["localhost/terrace/test-program:1: there already"]


def test_status_and_logs_show_every_part(kubelet_cluster: LocalCluster) -> None:
    where = ["--name", kubelet_cluster.name, "--dir", str(kubelet_cluster.folder.root)]
    shown = CliRunner().invoke(local_commands, ["status", *where]).output
    for name in ("namespaces", "containerd-node1", "kubelet-node0", "kube-proxy", "coredns"):
        assert re.search(rf"^{name} +\d+ +running", shown, re.MULTILINE)
    log = CliRunner().invoke(local_commands, ["logs", "kubelet-node0", *where]).output
    assert "node0" in log
