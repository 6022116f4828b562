"""The pinned versions of the control plane's programs and how each is built.

Owns: versions, Go packages, linker flags and the cache key that follows from them. ``k8s/go.mod``
pins the same versions; a test holds the two together. ``dns/go.mod`` is a graph of its own, because
CoreDNS would raise the versions that Kubernetes is built with. Next: ``releases.py``, ``build.py``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

KUBERNETES_VERSION = "v1.36.3"
ETCD_VERSION = "v3.6.8"
HELM_VERSION = "v4.2.4"
KWOK_VERSION = "v0.8.0"
COREDNS_VERSION = "v1.15.0"
MODULE_DIR = Path(__file__).parent / "k8s"
DNS_MODULE_DIR = Path(__file__).parent / "dns"

GO_PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "coredns": "terrace.dev/local/dns",
    "pause": "terrace.dev/local/k8s/pause",
    "helm": "helm.sh/helm/v4/cmd/helm",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
}
"""Program -> main package, in the graph of ``k8s/go.mod`` (CoreDNS: of ``dns/go.mod``)."""


def module_dir(name: str) -> Path:
    """The folder of the Go module in whose graph a program is built."""
    return DNS_MODULE_DIR if name == "coredns" else MODULE_DIR


_SOURCES = (
    (MODULE_DIR, "go.mod"),
    (MODULE_DIR, "go.sum"),
    (MODULE_DIR, "pause/main.go"),
    (DNS_MODULE_DIR, "go.mod"),
    (DNS_MODULE_DIR, "go.sum"),
    (DNS_MODULE_DIR, "main.go"),
)


def linker_flags(name: str) -> str:
    """Flags that make a program report its version.

    A plain build says v0.0.0, and then ``--emulated-version`` and helm's checks misbehave.
    """
    major, minor, _patch = KUBERNETES_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    stamps = {
        f"{version}.gitVersion": KUBERNETES_VERSION,
        f"{version}.gitMajor": major,
        f"{version}.gitMinor": minor,
        f"{version}.gitTreeState": "clean",
    }
    if name == "helm":
        stamps = {
            "helm.sh/helm/v4/internal/version.version": HELM_VERSION,
            "helm.sh/helm/v4/internal/version.gitTreeState": "clean",
        }
    if name == "kwok":
        stamps = {"sigs.k8s.io/kwok/pkg/consts.Version": KWOK_VERSION}
    if name in {"coredns", "etcd", "pause"}:
        stamps = {}
    return " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in stamps.items())])


def cache_key() -> str:
    """Changes with every version, source checksum and flag that a program depends on."""
    digest = hashlib.sha256()
    for part in (KUBERNETES_VERSION, ETCD_VERSION, HELM_VERSION, KWOK_VERSION, COREDNS_VERSION):
        digest.update(part.encode() + b"\0")
    for folder, file in _SOURCES:
        digest.update((folder / file).read_bytes() + b"\0")
    for name in sorted(GO_PACKAGES):
        digest.update(linker_flags(name).encode() + b"\0")
    return f"{KUBERNETES_VERSION}-{digest.hexdigest()[:12]}"
