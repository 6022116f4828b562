"""Official release files, each pinned by its SHA-256.

Owns: which file of which release holds a program, and fetching it so that nothing half-made or
changed is ever left under its final name. Does not own: the order of sources (``binaries.py``).

The checksums are those that kops (Kubernetes), kubespray (kubectl, etcd) and the projects' own
users of the release pages (helm) pin. A program or processor without a line here is built.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from terrace.local.errors import LocalClusterError
from terrace.local.versions import ETCD_VERSION, HELM_VERSION, KUBERNETES_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TIMEOUT_S = 5.0
_MAX_BYTES = 512 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class Release:
    """One file to fetch."""

    url: str
    sha256: str
    member: str | None = None
    """The program's path inside a .tar.gz; None: the file is the program."""

    @property
    def host(self) -> str:
        """The host that must be reachable."""
        return urlsplit(self.url).netloc


class ReleaseError(LocalClusterError):
    """A release file cannot be used; another source may do."""


class UnreachableError(ReleaseError):
    """Its host does not answer, so its other files need not be tried."""


_KUBERNETES_SHA256 = {
    ("kube-apiserver", "amd64"): "1f217d397234a6d065da663c6e086fdb02c0f0de97a0758ff3e6f3956f4ef8ab",
    ("kube-apiserver", "arm64"): "16001b9d35d23634c361a1e2b7b0fc7abe186984af697ef7a869c8c8cded78b7",
    ("kube-controller-manager", "amd64"): (
        "7edfe976d5a06c7a702d653e914095f4a732a04bb2139115b6a6eba6a9b781c7"
    ),
    ("kube-controller-manager", "arm64"): (
        "27868a5c822824945b93f2d8a724a5dcd99affc68b47230ae766bff8795bbb84"
    ),
    ("kube-proxy", "amd64"): "f1b5eb4462df9d98751264c6256628d90fdc72ba8e9a8025d1f75674f078f254",
    ("kube-proxy", "arm64"): "5db204a2f79b26f676137052b45e391f6f8c93b85c85ef0a1f5d72647e3c7834",
    ("kubelet", "amd64"): "46707a53209f826ad0f0d62371ac69cd00e78fd9a8176cf5f6f87f18f7f8b718",
    ("kubelet", "arm64"): "57205a5daf5883873d87b4914e1e00bdd7707acd075714788cfb0fc1f60bc414",
    ("kube-scheduler", "amd64"): "b8955d4518c902110b50a825364339b1fb673822518ce0ba081a69ed634f8eee",
    ("kube-scheduler", "arm64"): "ca1c7cd0033942bf9ef7eac80e18375d91f6f29487244c3e685f11163b01a88d",
    ("kubectl", "amd64"): "ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336",
    ("kubectl", "arm64"): "3d86f24401c41ae5a46ac50eef8865fe891d3647d324a0836f6c63757a126e62",
}
_ETCD_SHA256 = {
    "amd64": "cf9cfe91a4856cb90eed9c99e6aee4b708db2c7888b88a6f116281f04b0ea693",
    "arm64": "438f56a700d17ce761510a3e63e6fa5c1d587b2dd4d7a22c179c09a649366760",
}
_HELM_SHA256 = {
    "amd64": "c306b46f719b0a4da32d0f78ee21bf90ce8d602f15b22ab753f0674d1670a7f3",
    "arm64": "564de2191b881e9f71b5606b25345821ea1682f06ab90499d3ab22b530176da1",
}


def release_of(name: str, arch: str) -> Release | None:
    """The pinned file that holds a program, or None: then it is built, never guessed."""
    if name == "etcd" and arch in _ETCD_SHA256:
        stem = f"etcd-{ETCD_VERSION}-linux-{arch}"
        url = f"https://github.com/etcd-io/etcd/releases/download/{ETCD_VERSION}/{stem}.tar.gz"
        return Release(url, _ETCD_SHA256[arch], f"{stem}/etcd")
    if name == "helm" and arch in _HELM_SHA256:
        url = f"https://get.helm.sh/helm-{HELM_VERSION}-linux-{arch}.tar.gz"
        return Release(url, _HELM_SHA256[arch], f"linux-{arch}/helm")
    if (name, arch) in _KUBERNETES_SHA256:
        url = f"https://dl.k8s.io/release/{KUBERNETES_VERSION}/bin/linux/{arch}/{name}"
        return Release(url, _KUBERNETES_SHA256[name, arch])
    return None


def fetch(release: Release, target: Path, report: Callable[[str], None]) -> None:
    """Put the program at ``target``: whole and verified, or not at all.

    Raises UnreachableError when the host does not answer and ReleaseError when what it sent is
    not what is pinned.
    """
    partial = target.with_name(f".{target.name}.part")
    archive = target.with_name(f".{target.name}.tar.part")
    received = archive if release.member else partial
    try:
        with received.open("wb") as file:
            digest = _receive(release, file, report)
        if digest != release.sha256:
            raise ReleaseError(
                f"{release.url} has SHA-256 {digest}, expected {release.sha256}: not used"
            )
        if release.member:
            _extract(archive, release, partial)
        partial.chmod(0o755)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)


def _receive(release: Release, file: IO[bytes], report: Callable[[str], None]) -> str:
    digest = hashlib.sha256()
    count = 0
    next_report = time.monotonic() + _REPORT_EVERY_S
    try:
        with urllib.request.urlopen(release.url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - https of our own table
            while chunk := response.read(_CHUNK_BYTES):
                count += len(chunk)
                if count > _MAX_BYTES:
                    raise ReleaseError(f"{release.url} is larger than {_MAX_BYTES} bytes")
                digest.update(chunk)
                file.write(chunk)
                if time.monotonic() >= next_report:
                    report(f"  {count / 1e6:.0f} MB of {release.url}")
                    next_report = time.monotonic() + _REPORT_EVERY_S
    except urllib.error.HTTPError as error:
        error.close()
        raise ReleaseError(f"{release.url} answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UnreachableError(f"{release.host} is not reachable ({error.reason})") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise UnreachableError(f"{release.host} stopped answering ({error!r})") from error
    return digest.hexdigest()


def _extract(archive: Path, release: Release, target: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        try:
            source = tar.extractfile(str(release.member))
        except KeyError:
            source = None
        if source is None:
            raise ReleaseError(f"{release.url} holds no file {release.member}")
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
