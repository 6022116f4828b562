"""The files that containerd, the CNI plugins, kubelet, kube-proxy and CoreDNS read.

Owns: every setting and why. Pure: values in, text out. Does not own: where the files lie and the
command lines (``components.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.kubelets.network import NodeNetwork

PAUSE_IMAGE = "localhost/terrace/pause:1"
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Machine:
    """What the files depend on beside the cluster: this machine."""

    cni_dir: str
    """Where the CNI plugins lie."""
    snapshotter: str
    """``overlayfs``, or ``native`` (whole copies) where it cannot be had."""
    may_lower_oom_score: bool
    """CAP_SYS_RESOURCE; without it runc dies when it is told to."""


def containerd(node: Path, run: str, machine: Machine) -> str:
    """The configuration of one node's containerd, as TOML; ``run`` vanishes with the node."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    sections: list[tuple[str, dict[str, Any]]] = [
        ("", {"version": 2, "root": str(node / "containerd"), "state": f"{run}/state"}),
        ("grpc", {"address": f"{run}/containerd.sock"}),
        ('plugins."io.containerd.internal.v1.opt"', {"path": str(node / "opt")}),
        (
            cri,
            {
                "sandbox_image": PAUSE_IMAGE,
                "restrict_oom_score_adj": not machine.may_lower_oom_score,
                # A profile would be loaded into the machine's kernel, and stay there.
                "disable_apparmor": True,
            },
        ),
        (f"{cri}.containerd", {"snapshotter": machine.snapshotter}),
        (f"{cri}.cni", {"bin_dir": machine.cni_dir, "conf_dir": str(node / "cni")}),
    ]
    lines = []
    for name, values in sections:
        if name:
            lines += ["", f"[{name}]"]
        # TOML's strings, numbers and truth values are written as those of JSON.
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def cni(network: NodeNetwork, index: int, run: str) -> str:
    """The chain of CNI plugins of one node, as JSON."""
    ipam = {
        "type": "host-local",
        "dataDir": f"{run}/addresses",
        "ranges": [[{"subnet": network.node_pods(index), "gateway": network.node(index)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins: list[dict[str, Any]] = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return _json({"cniVersion": "0.4.0", "name": "terrace", "plugins": plugins})


def kubelet(network: NodeNetwork, index: int, node: Path, run: str, pki: Path) -> str:
    """KubeletConfiguration of one node."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node(index),
        "port": 10250,
        "healthzBindAddress": network.node(index),
        "healthzPort": 10248,
        "tlsCertFile": f"{pki}/node{index}.crt",
        "tlsPrivateKeyFile": f"{pki}/node{index}.key",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/kubelet-client-ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{run}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{network.name}/node{index}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [network.control_plane],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(node / "resolv.conf"),
        "podLogsDir": str(node / "logs"),
        "volumePluginDir": str(node / "plugins"),
        # The machine is shared with whatever else its owner does: only real need evicts.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        # An image that was loaded cannot be pulled again: none is ever thrown away.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 110,
    }
    return _json(config)


def proxy(network: NodeNetwork, kubeconfig: Path) -> str:
    """KubeProxyConfiguration: one for all nodes, which share their network."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "hostnameOverride": "node0",
        "clusterCIDR": network.pods,
        "healthzBindAddress": f"{network.control_plane}:10256",
        "metricsBindAddress": f"{network.control_plane}:10249",
        # The kernel's limits of tracked connections are the machine's, not ours to set.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
    return _json(config)


def dns(network: NodeNetwork, kubeconfig: Path) -> str:
    """Corefile. Names outside the cluster are refused at once: there is no way out to ask them."""
    return f"""\
{CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
    bind {network.control_plane}
    errors
    ready {network.control_plane}:8181
    kubernetes {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    cache 5
}}
"""


def resolv_conf(network: NodeNetwork) -> str:
    """For pods with the DNS policy ``Default``."""
    return f"nameserver {network.control_plane}\n"


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
