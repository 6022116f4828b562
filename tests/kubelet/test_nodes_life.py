"""A cluster with a real node from its first start to its end, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.clusters import cluster_name, running_cluster
from support.real_nodes import answer, apply, cluster_ip, node_of, objects, service, stateful_set
from support.tiny_image import tiny_image
from support.waiting import wait_for
from terrace.local import processes
from terrace.local.cluster import LocalCluster
from terrace.local.errors import LocalClusterError
from terrace.local.kubelets import why_not
from terrace.local.kubelets.network import NodeNetwork
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(600)
ONE_NODE = ClusterOptions(nodes=0, kubelets=1, fsync=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster that tests may break; each begins with ``up``, which repairs it."""
    obstacle = why_not()
    if obstacle is not None:
        pytest.skip(obstacle)
    with running_cluster("life", tmp_path_factory, ONE_NODE) as made:
        made.load_images([tiny_image(tmp_path_factory.mktemp("image"))])
        apply(made, service("kept"), stateful_set("kept"))
        made.kubectl("rollout", "status", "statefulset/kept", "--timeout=240s", timeout_s=260)
        yield made


def network(cluster: LocalCluster) -> NodeNetwork:
    state = cluster.folder.load()
    assert state
    return NodeNetwork(state.block)


def outer_pid(cluster: LocalCluster) -> int:
    return next(part.pid or 0 for part in cluster.status().components if part.name == "namespaces")


def traces(root: Path, name: str) -> list[str]:
    """What a cluster has on this machine beside its folder."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mountinfo").read_text()
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{name}")]
    groups += [str(path) for path in Path("/sys/fs/cgroup").glob(name)]
    lines = [*links.splitlines(), *routes.splitlines()]
    return [
        *(str(record) for record in processes.left_behind(root)),
        *(line for line in lines if f"{name}@" in line or f"dev {name} " in line),
        *(line for line in mounts.splitlines() if f"{root}/" in line),
        *groups,
    ]


def starts(cluster: LocalCluster) -> int:
    """How often the server began, as counted in its volume."""
    said = answer(f"http://{cluster_ip(cluster, 'kept')}/starts").split()
    return int(said[0]) if said else 0


def firewall() -> str:
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return rules.stdout


def test_killing_the_outer_process_leaves_nothing_and_up_repairs_it(cluster: LocalCluster) -> None:
    cluster.up()
    name, root = network(cluster).name, cluster.folder.root
    before = wait_for("the server", lambda: starts(cluster), timeout=60)
    assert traces(root, name), "this test would see what is left"

    os.kill(outer_pid(cluster), signal.SIGKILL)
    wait_for("nothing left", lambda: not traces(root, name), timeout=60)
    assert cluster.status().is_stopped

    assert cluster.up()
    assert network(cluster).name == name, "stored objects hold its addresses"
    # The volume is that of before, the container is another one, and its image is still there.
    after = wait_for("the server", lambda: starts(cluster), timeout=120)
    assert after == before + 1
    assert not cluster.up(), "all of it runs already"


def test_a_killed_kubelet_alone_is_repaired_under_running_pods(cluster: LocalCluster) -> None:
    cluster.up()
    before = wait_for("the server", lambda: starts(cluster), timeout=60)
    parts = {part.name: part.pid or 0 for part in cluster.status().components}
    os.kill(parts["kubelet-node0"], signal.SIGKILL)
    wait_for("its end", lambda: not cluster.status().is_running)
    assert cluster.up()
    now = {part.name: part.pid or 0 for part in cluster.status().components}
    assert {each for each in now if now[each] != parts[each]} == {"kubelet-node0"}
    assert wait_for("the server", lambda: starts(cluster), timeout=60) == before


def test_volumes_and_images_outlive_a_stop(cluster: LocalCluster) -> None:
    cluster.up()
    name, root = network(cluster).name, cluster.folder.root
    before = wait_for("the server", lambda: starts(cluster), timeout=60)
    cluster.down(keep_data=True)
    assert traces(root, name) == []
    cluster.up()
    assert wait_for("the server", lambda: starts(cluster), timeout=120) == before + 1


def test_pods_are_asked_to_end_before_the_cluster_stops(cluster: LocalCluster) -> None:
    cluster.up()
    wait_for("the pod", lambda: node_of(cluster, "kept"), timeout=120)
    volume = objects(cluster, "pvc", "data-kept-0")["spec"]["volumeName"]
    ended = cluster.folder.node / "node0" / "volumes" / volume / "ended"
    ended.unlink(missing_ok=True)
    cluster.down(keep_data=True)
    assert ended.read_text() == "kept-0"


def test_two_such_clusters_run_side_by_side(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.up()
    rules = firewall()
    other = LocalCluster(cluster_name("beside"), directory=tmp_path / "c", options=ONE_NODE)
    try:
        other.up()
        assert network(other) != network(cluster)
        assert node_of(other, "kept") == ""
        assert other.kubectl("get", "nodes", "-o", "name") == "node/node0\n"
        assert wait_for("the first one's server", lambda: starts(cluster), timeout=60)
    finally:
        name = network(other).name
        other.down()
    assert traces(other.folder.root, name) == []
    assert firewall() == rules


def test_a_cluster_whose_addresses_another_holds_is_refused(cluster: LocalCluster) -> None:
    cluster.down(keep_data=True)
    taken = network(cluster)
    command = ["ip", "route", "add", "blackhole", f"10.{taken.number}.7.0/24"]
    subprocess.run(command, check=True)
    try:
        with pytest.raises(LocalClusterError, match=f"addresses {taken.whole} of cluster"):
            cluster.up()
    finally:
        subprocess.run([*command[:2], "del", *command[3:]], check=True)
    assert cluster.up()


def test_an_interrupted_up_leaves_nothing(tmp_path: Path) -> None:
    folder, given = tmp_path / "c", cluster_name("interrupted")
    command = [sys.executable, "-m", "terrace.cli", "local", "up", "--nodes", "kubelet:1",
               "--name", given, "--dir", str(folder)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        assert any("kube-apiserver started" in line for line in starting.stderr)
        stopped = LocalCluster(given, directory=folder)
        name = network(stopped).name
        assert traces(folder, name)
        starting.send_signal(signal.SIGTERM)
        starting.stderr.read()
    assert starting.returncode not in (0, None)
    assert traces(folder, name) == []
    stopped.down()


def test_images_go_only_to_real_nodes_that_run(tmp_path: Path) -> None:
    archive = tiny_image(tmp_path)
    cluster = LocalCluster("test-none", directory=tmp_path / "none")
    with pytest.raises(LocalClusterError, match="there is no local cluster"):
        cluster.load_images([archive])
    assert not cluster.folder.root.exists()
