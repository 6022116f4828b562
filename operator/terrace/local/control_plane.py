"""The command line of every process of a cluster, as a pure function of its layout.

Owns: which flags, and why. Does not own: starting (``processes.py``) and order (``cluster.py``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from terrace.local.kubelets import components as kubelets
from terrace.local.kubelets.network import NodeNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from terrace.local.addresses import AddressBlock
    from terrace.local.state import ClusterFolder, ClusterOptions

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
NODE = "node"
PORTS = ("etcd", "etcd-peer", "apiserver", "controller-manager", "scheduler")
NODE_NAME = "host"
SERVICE_RANGE = "10.96.0.0/16"

# EndpointSlice validation refuses loopback addresses, which is all that pods have here: these
# controllers could only fail, over and over. No kube-proxy reads their slices anyway.
_DISABLED_CONTROLLERS = (
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
)


@dataclass(frozen=True)
class Layout:
    """What the command lines depend on."""

    folder: ClusterFolder
    block: AddressBlock
    ports: Mapping[str, int]
    options: ClusterOptions
    binaries: Mapping[str, Path]

    @property
    def address(self) -> str:
        """Where the control plane listens."""
        return control_plane_address(self.options, self.block)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.address}:{self.ports['apiserver']}"

    @property
    def service_range(self) -> str:
        """ClusterIPs."""
        if self.options.kubelets:
            return NodeNetwork(self.block.number).services
        return SERVICE_RANGE


def control_plane_address(options: ClusterOptions, block: AddressBlock) -> str:
    """Where the control plane listens: on loopback, or where pods of real nodes reach it."""
    return NodeNetwork(block.number).control_plane if options.kubelets else block.control_plane


def components(options: ClusterOptions) -> tuple[str, ...]:
    """The processes of a cluster, in the order in which they start."""
    return (
        *kubelets.before_control_plane(options.kubelets),
        *(ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER),
        *((NODE,) if options.nodes else ()),
        *kubelets.after_control_plane(options.kubelets),
    )


def command_line(component: str, layout: Layout) -> list[str]:
    """The argv of one component, the caller's extra arguments last, so that they win."""
    build = {
        ETCD: _etcd,
        API_SERVER: _api_server,
        CONTROLLER_MANAGER: _controller_manager,
        SCHEDULER: _scheduler,
        NODE: _node,
    }.get(component, partial(kubelets.command_line, component))
    return [*build(layout), *layout.options.extra_args.get(component, ())]


def _etcd(layout: Layout) -> list[str]:
    pki = layout.folder.pki
    client = f"https://{layout.address}:{layout.ports['etcd']}"
    peer = f"https://{layout.address}:{layout.ports['etcd-peer']}"
    return [
        str(layout.binaries[ETCD]),
        f"--data-dir={layout.folder.etcd}",
        "--name=terrace",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=terrace={peer}",
        f"--cert-file={pki}/etcd.crt",
        f"--key-file={pki}/etcd.key",
        "--client-cert-auth",
        f"--trusted-ca-file={pki}/etcd-ca.crt",
        f"--peer-cert-file={pki}/etcd.crt",
        f"--peer-key-file={pki}/etcd.key",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={pki}/etcd-ca.crt",
        "--log-level=warn",
        # Keys of a busy test cluster would fill the default 2 GiB within hours otherwise.
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
        *([] if layout.options.fsync else ["--unsafe-no-fsync"]),
    ]


def _api_server(layout: Layout) -> list[str]:
    pki = layout.folder.pki
    address = layout.address
    # The Service `kubernetes` cannot lead to a loopback address.
    reconciler = "lease" if layout.options.kubelets else "none"
    return [
        str(layout.binaries[API_SERVER]),
        f"--etcd-servers=https://{address}:{layout.ports['etcd']}",
        f"--etcd-cafile={pki}/etcd-ca.crt",
        f"--etcd-certfile={pki}/apiserver-etcd-client.crt",
        f"--etcd-keyfile={pki}/apiserver-etcd-client.key",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={layout.ports['apiserver']}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={layout.service_range}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        # Otherwise `kubectl logs` looks the node's name up in DNS.
        "--kubelet-preferred-address-types=InternalIP",
        f"--endpoint-reconciler-type={reconciler}",
        "--profiling=false",
        *_emulated(layout),
        *_audit(layout),
    ]


def _audit(layout: Layout) -> list[str]:
    if not layout.options.audit:
        return []
    return [
        f"--audit-policy-file={layout.folder.audit_policy}",
        f"--audit-log-path={layout.folder.audit_log}",
        "--audit-log-maxsize=100",
        "--audit-log-maxbackup=2",
    ]


def _controller_manager(layout: Layout) -> list[str]:
    pki = layout.folder.pki
    kubeconfig = layout.folder.kubeconfigs / "controller-manager.conf"
    off = () if layout.options.kubelets else _DISABLED_CONTROLLERS
    return [
        str(layout.binaries[CONTROLLER_MANAGER]),
        # As the admin and not as one service account per controller: making those 40 accounts
        # more than doubles the time to start, and nothing here is protected by them.
        f"--kubeconfig={layout.folder.kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={layout.address}",
        f"--secure-port={layout.ports['controller-manager']}",
        f"--tls-cert-file={pki}/controller-manager.crt",
        f"--tls-private-key-file={pki}/controller-manager.key",
        f"--service-account-private-key-file={pki}/service-account.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--controllers={','.join(['*', *(f'-{name}' for name in off)])}",
        "--leader-elect=false",
        "--profiling=false",
        *_emulated(layout),
    ]


def _scheduler(layout: Layout) -> list[str]:
    pki = layout.folder.pki
    kubeconfig = layout.folder.kubeconfigs / "scheduler.conf"
    return [
        str(layout.binaries[SCHEDULER]),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={layout.address}",
        f"--secure-port={layout.ports['scheduler']}",
        f"--tls-cert-file={pki}/scheduler.crt",
        f"--tls-private-key-file={pki}/scheduler.key",
        "--leader-elect=false",
        "--profiling=false",
        *_emulated(layout),
    ]


def _node(layout: Layout) -> list[str]:
    pki = layout.folder.pki
    images = layout.options.images
    return [
        sys.executable,
        "-m",
        "terrace.local.hostnode",
        f"--kubeconfig={layout.folder.kubeconfigs / 'node.conf'}",
        f"--dir={layout.folder.node}",
        f"--name={NODE_NAME}",
        f"--address={layout.block.node}",
        f"--pod-addresses={layout.block.pods}",
        f"--serving-cert={pki}/node.crt",
        f"--serving-key={pki}/node.key",
        f"--client-ca={pki}/kubelet-client-ca.crt",
        f"--api-server={layout.server}",
        *([f"--images={images}"] if images else []),
    ]


def _emulated(layout: Layout) -> list[str]:
    version = layout.options.emulated_version
    return [f"--emulated-version={version}"] if version else []
