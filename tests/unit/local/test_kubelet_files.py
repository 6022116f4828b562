"""What the processes of real nodes read and how they are called, against a golden file."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

from terrace.local.addresses import AddressBlock
from terrace.local.control_plane import Layout, command_line, components
from terrace.local.kubelets import configs
from terrace.local.kubelets.components import PROGRAMS, leaves, node_files, users, write_files
from terrace.local.kubelets.namespaces import setup_script
from terrace.local.kubelets.network import (
    CONTROL_PLANE_PORTS,
    NodeNetwork,
    inner_commands,
    outer_commands,
    route_command,
)
from terrace.local.state import ClusterFolder, ClusterOptions

GOLDEN = Path(__file__).parent / "golden" / "kubelet_files.txt"
NETWORK = NodeNetwork(77)
MACHINE = configs.Machine(
    cni_dir="/usr/lib/cni", snapshotter="overlayfs", may_lower_oom_score=False
)


def layout(folder: Path = Path("/cluster"), nodes: int = 2) -> Layout:
    options = ClusterOptions(nodes=0, kubelets=nodes)
    names = {*components(ClusterOptions(nodes=0)), *PROGRAMS, "unshare", "containerd"}
    return Layout(
        folder=ClusterFolder(folder),
        block=AddressBlock(NETWORK.number),
        ports=CONTROL_PLANE_PORTS,
        options=options,
        binaries={name: Path("/bin") / name for name in names},
    )


def rendered() -> str:
    whole = layout()
    files = node_files(whole, 1)
    parts = {
        "containerd.toml": configs.containerd(files.root, files.run, MACHINE),
        "terrace.conflist": configs.cni(NETWORK, 1, files.run),
        "kubelet.json": configs.kubelet(NETWORK, 1, files.root, files.run, whole.folder.pki),
        "kube-proxy.json": configs.proxy(NETWORK, Path("/cluster/kubeconfigs/kube-proxy.conf")),
        "Corefile": configs.dns(NETWORK, Path("/cluster/kubeconfigs/coredns.conf")),
        "setup.sh": setup_script(NETWORK, {files.kubelet_root_inside: files.kubelet_root}),
    }
    parts |= {
        name: "\n".join(command_line(name, whole)) + "\n" for name in components(whole.options)
    }
    text = "\n".join(f"[{name}]\n{text}" for name, text in parts.items())
    return text.replace(sys.executable, "PYTHON")


def test_the_files_and_command_lines_are_those_of_the_golden_file() -> None:
    """UPDATE_GOLDEN=1 writes it anew; read the difference before you commit it."""
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(rendered())
    assert rendered() == GOLDEN.read_text()


def test_the_room_and_containerd_come_before_the_control_plane_and_kubelets_after() -> None:
    names = components(ClusterOptions(nodes=0, kubelets=2))
    assert names[0] == "namespaces"
    assert names.index("containerd-node1") < names.index("etcd") < names.index("kubelet-node0")
    assert "node" not in names


def test_a_cluster_without_real_nodes_has_none_of_it() -> None:
    assert components(ClusterOptions()) == (
        "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "node",
    )  # fmt: skip


def test_containerds_configuration_is_toml() -> None:
    config = tomllib.loads(configs.containerd(Path('/a "b"/node0'), "/run/x", MACHINE))
    assert config["root"] == '/a "b"/node0/containerd'
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["containerd"]["snapshotter"] == "overlayfs"


def test_the_oom_score_is_restricted_only_where_it_must_be() -> None:
    able = configs.Machine("/usr/lib/cni", "native", may_lower_oom_score=True)
    config = tomllib.loads(configs.containerd(Path("/n"), "/run/x", able))
    assert config["plugins"]["io.containerd.grpc.v1.cri"]["restrict_oom_score_adj"] is False


def test_each_node_has_files_addresses_and_an_identity_of_its_own(tmp_path: Path) -> None:
    whole = layout(tmp_path, nodes=3)
    write_files(whole, MACHINE)
    kubelets = [json.loads(node_files(whole, i).kubelet.read_text()) for i in range(3)]
    for key in ("address", "tlsCertFile", "cgroupRoot", "containerRuntimeEndpoint", "podLogsDir"):
        assert len({config[key] for config in kubelets}) == 3
    assert {leaf.common_name for leaf in leaves(NETWORK, 3)} == {
        "system:node:node0", "system:node:node1", "system:node:node2", "system:kube-proxy",
        "system:coredns",
    }  # fmt: skip
    assert {leaf.file for leaf in leaves(NETWORK, 3)} == set(users(3))


def test_no_socket_lies_at_a_path_that_is_too_long_for_one(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    whole = layout(deep)
    (root,) = [word for word in command_line("kubelet-node0", whole) if "--root-dir=" in word]
    assert len(root) < 60
    assert str(deep) not in setup_script(NETWORK, {"/run/a": Path("/b")})


def test_a_folder_with_blanks_and_quotes_is_one_word_of_the_script() -> None:
    script = setup_script(NETWORK, {"/run/a": Path("/it's mine")})
    assert """mount --bind '/it'"'"'s mine' /run/a\n""" in script


def test_both_ends_of_the_link_are_addressed_before_the_route() -> None:
    assert outer_commands(NETWORK, 7)[0][-2:] == ["netns", "7"]
    assert ["address", "add", "10.77.255.1/30", "dev", "terrace77"] in outer_commands(NETWORK, 7)
    assert ["address", "add", "10.77.255.2/30", "dev", "uplink"] in inner_commands(NETWORK, 2)
    assert route_command(NETWORK) == [
        "route", "add", "10.77.0.0/16", "via", "10.77.255.2", "src", "10.77.255.1",
    ]  # fmt: skip
