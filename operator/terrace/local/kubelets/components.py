"""The processes of a cluster with real nodes beside its control plane.

Owns: their names, order and command lines, the files they read and the identities they have.
Does not own: the settings in these files (``configs.py``), starting (``terrace.local.startup``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terrace.local.certificates import CLUSTER_CA, Leaf
from terrace.local.kubelets import configs
from terrace.local.kubelets.namespaces import RUN, outer_argv, program
from terrace.local.kubelets.network import NodeNetwork, node_name, node_names
from terrace.local.state import write_private

if TYPE_CHECKING:
    from terrace.local.control_plane import Layout

NAMESPACES = "namespaces"
PROXY = "kube-proxy"
DNS = "coredns"
VOLUMES = "volumes"
PROGRAMS = ("kubelet", PROXY, DNS, "pause")
"""What ``find_binaries`` brings."""


def machine_programs() -> dict[str, Path]:
    """What is the machine's own; raises LocalClusterError where one is missing."""
    return {name: Path(program(name)) for name in ("unshare", "containerd")}


def containerd_names(count: int) -> tuple[str, ...]:
    """One containerd per node."""
    return tuple(f"containerd-{name}" for name in node_names(count))


def kubelet_names(count: int) -> tuple[str, ...]:
    """One kubelet per node."""
    return tuple(f"kubelet-{name}" for name in node_names(count))


def before_control_plane(count: int) -> tuple[str, ...]:
    """What starts first: the room, and containerd while the API server takes its time."""
    return (NAMESPACES, *containerd_names(count)) if count else ()


def after_control_plane(count: int) -> tuple[str, ...]:
    """What needs the API server."""
    return (*kubelet_names(count), PROXY, DNS, VOLUMES) if count else ()


@dataclass(frozen=True)
class NodeFiles:
    """Where the files of one node lie."""

    root: Path
    """Survives ``down --keep-data``."""
    run: str
    """Inside the namespaces only: gone with them."""

    @property
    def kubelet_root(self) -> Path:
        """The folder that kubelet sees as ``kubelet_root_inside``."""
        return self.root / "kubelet"

    @property
    def kubelet_root_inside(self) -> str:
        """Short, because kubelet and plugins make sockets there."""
        return f"{self.run}/kubelet"

    @property
    def kubelet(self) -> Path:
        """KubeletConfiguration."""
        return self.root / "kubelet.json"

    @property
    def containerd(self) -> Path:
        """The configuration of containerd."""
        return self.root / "containerd.toml"


def node_files(layout: Layout, index: int) -> NodeFiles:
    """The files of node ``index``."""
    name = node_name(index)
    return NodeFiles(layout.folder.node / name, f"{RUN}/{name}")


def command_line(component: str, layout: Layout) -> list[str]:
    """The argv of one component."""
    kind, _, node = component.partition("-node")
    if kind == "containerd":
        files = node_files(layout, int(node))
        binary = str(layout.binaries["containerd"])
        return [binary, "--config", str(files.containerd), "--log-level", "warn"]
    if kind == "kubelet":
        return _kubelet(layout, int(node))
    folder = layout.folder
    if component == NAMESPACES:
        return outer_argv(layout.binaries["unshare"], layout.binaries["pause"])
    if component == PROXY:
        return [str(layout.binaries[PROXY]), f"--config={folder.node / 'kube-proxy.json'}"]
    if component == DNS:
        return [str(layout.binaries[DNS]), "-conf", str(folder.node / "Corefile")]
    assert component == VOLUMES
    return [
        sys.executable,
        "-m",
        "terrace.local.kubelets.volumes",
        f"--kubeconfigs={folder.kubeconfigs}",
        f"--dir={folder.node}",
        *node_names(layout.options.kubelets),
    ]


def _kubelet(layout: Layout, index: int) -> list[str]:
    files = node_files(layout, index)
    name = node_name(index)
    return [
        str(layout.binaries["kubelet"]),
        f"--config={files.kubelet}",
        f"--kubeconfig={layout.folder.kubeconfigs / name}.conf",
        f"--hostname-override={name}",
        f"--node-ip={NodeNetwork(layout.block.number).node(index)}",
        f"--root-dir={files.kubelet_root_inside}",
        f"--cert-dir={files.root / 'pki'}",
        # Without it, /metrics/cadvisor knows no container by its name.
        f"--containerd={files.run}/containerd.sock",
    ]


def leaves(network: NodeNetwork, count: int) -> tuple[Leaf, ...]:
    """The certificates beside those of the control plane."""
    nodes = (
        Leaf(name, CLUSTER_CA, f"system:node:{name}", "system:nodes", (name, network.node(index)))
        for index, name in enumerate(node_names(count))
    )
    return (
        *nodes,
        Leaf(PROXY, CLUSTER_CA, "system:kube-proxy"),
        Leaf(DNS, CLUSTER_CA, "system:coredns"),
    )


def users(count: int) -> tuple[str, ...]:
    """Who gets a kubeconfig."""
    return (*node_names(count), PROXY, DNS)


def write_files(layout: Layout, machine: configs.Machine) -> None:
    """Write what the components read."""
    network = NodeNetwork(layout.block.number)
    folder = layout.folder
    texts = {
        folder.node / "kube-proxy.json": configs.proxy(
            network, folder.kubeconfigs / f"{PROXY}.conf"
        ),
        folder.node / "Corefile": configs.dns(network, folder.kubeconfigs / f"{DNS}.conf"),
    }
    for index in range(layout.options.kubelets):
        files = node_files(layout, index)
        files.kubelet_root.mkdir(mode=0o755, parents=True, exist_ok=True)
        texts |= {
            files.containerd: configs.containerd(files.root, files.run, machine),
            files.kubelet: configs.kubelet(network, index, files.root, files.run, folder.pki),
            files.root / "cni" / "terrace.conflist": configs.cni(network, index, files.run),
            files.root / "resolv.conf": configs.resolv_conf(network),
        }
    for path, text in texts.items():
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_private(path, text.encode())
