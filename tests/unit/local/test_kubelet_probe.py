"""What a machine without the means is told, and how cgroups are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from terrace.cli.local import app
from terrace.local.cluster import LocalCluster
from terrace.local.errors import LocalClusterError
from terrace.local.kubelets import cgroups, probe
from terrace.local.kubelets.nodes import hidden_inside
from terrace.local.state import ClusterFolder, ClusterOptions, ClusterState

RUN = CliRunner()
HYBRID = """\
25 29 0:22 / /sys rw shared:7 - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 / /sys/fs/cgroup/unified rw shared:4 master:2 - cgroup2 cgroup2 rw
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))


def test_only_root_on_linux_can_have_real_nodes() -> None:
    assert probe.wrong_place("linux", 0) is None
    assert probe.wrong_place("darwin", 0) == "real nodes need Linux; this is darwin"
    said = "real nodes need root: they make namespaces, mounts and network interfaces"
    assert probe.wrong_place("linux", 1000) == said


def test_missing_packages_are_named_as_apt_takes_them(tmp_path: Path) -> None:
    have = [name for name in probe.PACKAGES if name not in {"conntrack", "iptables", "nft"}]
    for name in have:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert probe.missing_programs(str(tmp_path), [str(tmp_path)]) == (
        "real nodes need more programs: "
        "apt-get install conntrack containernetworking-plugins iptables nftables"
    )
    for name in ("conntrack", "iptables", "nft", "ptp", "host-local", "portmap", "loopback"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert probe.missing_programs(str(tmp_path), ["/nowhere", str(tmp_path)]) is None


def test_too_few_inotify_instances_are_told_with_the_way_out() -> None:
    left = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    assert probe.short_of_watchers(1, lambda: left.pop() if left else -1) == (
        "too few inotify instances are free on this machine: stop other clusters, or raise the "
        "limit with `sysctl -w fs.inotify.max_user_instances=1024`"
    )


def test_a_folder_that_would_be_hidden_inside_is_refused() -> None:
    assert hidden_inside(Path("/home/me/.local/state/terrace")) is None
    assert hidden_inside(Path("/runs/c")) is None
    assert hidden_inside(Path("/run/user/0/c")) == (
        "real nodes have a /run of their own, without /run/user/0/c: choose another --dir"
    )


def test_data_of_one_kind_of_node_is_not_taken_over_by_another(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")
    folder.make()
    made = ClusterOptions(nodes=0, kubelets=1)
    folder.save(ClusterState(name="x", options=made, block=20, ports={"apiserver": 6443}))
    cluster = LocalCluster("x", directory=folder.root, options=ClusterOptions())
    with pytest.raises(LocalClusterError, match="keeps data made with another kind of node"):
        cluster.up()


@pytest.mark.parametrize("words", ["kubelet", "kubelet:0", "kubelet:4", "kubelet:x", "two"])
def test_a_kind_of_node_that_is_none_is_refused(words: str) -> None:
    answer = RUN.invoke(app, ["up", "--nodes", words])
    assert "is neither host nor none nor kubelet:N with N from 1 to 3" in str(answer.exception)


def test_no_node_and_real_nodes_exclude_each_other() -> None:
    answer = RUN.invoke(app, ["up", "--no-node", "--nodes", "kubelet:1"])
    assert str(answer.exception) == "--no-node and --nodes kubelet:1 exclude each other"


def test_the_image_map_is_for_the_host_node_alone(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("{}")
    words = ["up", "--nodes", "kubelet:1", "--images", str(tmp_path / "map.json")]
    assert "real nodes take `terrace local load`" in str(RUN.invoke(app, words).exception)


def test_images_for_a_cluster_without_real_nodes_are_refused(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")
    folder.make()
    folder.save(ClusterState(name="x", options=ClusterOptions(), block=20, ports={}))
    (tmp_path / "a.tar").write_bytes(b"")
    words = ["load", str(tmp_path / "a.tar"), "--name", "x", "--dir", str(folder.root)]
    assert "has no node that runs images" in str(RUN.invoke(app, words).exception)


def test_mounts_of_both_versions_of_cgroups_are_told_apart() -> None:
    mounted = {str(path): names for path, names in cgroups.hierarchies(HYBRID).items()}
    assert mounted == {
        "/sys/fs/cgroup/memory": {"rw", "memory"},
        "/sys/fs/cgroup/cpu,cpuacct": {"rw", "cpu", "cpuacct"},
        "/sys/fs/cgroup/unified": set(),
    }


def test_a_missing_controller_is_named(tmp_path: Path) -> None:
    mounted = {tmp_path: frozenset({"rw", "cpu", "memory"})}
    said = "no cgroup controller cpuset, pids is mounted below /sys/fs/cgroup"
    assert cgroups.obstacle(mounted) == said


def unified(root: Path, *, controllers: str = "cpuset cpu io memory pids", **files: str) -> Path:
    """A folder that looks like a mount of version 2."""
    defaults = {"controllers": controllers, "subtree_control": "", "procs": ""}
    for name, text in {**defaults, **files}.items():
        (root / f"cgroup.{name}").write_text(text)
    return root


def test_version_2_with_all_controllers_will_do(tmp_path: Path) -> None:
    root = unified(tmp_path, procs="1\n2\n")
    assert cgroups.obstacle({root: frozenset()}) is None


def test_a_container_whose_cgroup_is_full_is_told_so(tmp_path: Path) -> None:
    root = unified(tmp_path, procs="1\n", type="domain\n")
    said = cgroups.obstacle({root: frozenset()})
    assert said
    assert "holds processes and can hand no controllers down: in a container" in said


def test_version_2_hands_its_controllers_down_to_the_nodes(tmp_path: Path) -> None:
    root = unified(tmp_path)
    (root / "terrace9").mkdir()
    unified(root / "terrace9")
    cgroups.make("terrace9", ["node0", "node1"], {root: frozenset()})
    assert (root / "terrace9" / "node1").is_dir()
    for group in (root, root / "terrace9"):
        handed = (group / "cgroup.subtree_control").read_text()
        assert handed == "+cpuset +cpu +io +memory +pids"


def test_version_1_tells_each_group_its_processors(tmp_path: Path) -> None:
    groups = [tmp_path, tmp_path / "terrace9", tmp_path / "terrace9" / "node0"]
    for group in groups:
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            (group / file).write_text("0-3\n" if group == tmp_path else "\n")
    cgroups.make("terrace9", ["node0"], {tmp_path: frozenset({"rw", "cpuset"})})
    assert [(group / "cpuset.cpus").read_text() for group in groups] == ["0-3\n"] * 3
