"""Keys, certificates and kubeconfigs of a cluster (EC P-256, PEM).

Owns: who trusts whom. Three authorities, so that none speaks for another: ``ca`` for the API and
its users, ``etcd-ca`` for etcd, ``kubelet-client-ca`` for the one client of the node's API (a
certificate that the controller manager signs for a user must open neither).
Does not own: where the files lie (``state.py``) and who reads them (``control_plane.py``).
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from terrace.local.state import write_private

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_AUTHORITY_DAYS = 3650
_LEAF_DAYS = 365
_RENEW_BEFORE = dt.timedelta(days=30)
CLUSTER_CA = "ca"
ETCD_CA = "etcd-ca"
KUBELET_CLIENT_CA = "kubelet-client-ca"


@dataclass(frozen=True)
class Leaf:
    """One certificate to be: ``<file>.crt`` and ``<file>.key``."""

    file: str
    authority: str
    common_name: str
    organization: str | None = None
    hosts: tuple[str, ...] = ()
    """DNS names and IP addresses it serves under; none: a client's certificate."""


def leaves(node: str, node_address: str, control_plane_address: str) -> tuple[Leaf, ...]:
    """All certificates of a cluster with the host node."""
    return (
        *control_plane_leaves(control_plane_address, "10.96.0.1"),
        Leaf("node", CLUSTER_CA, f"system:node:{node}", "system:nodes", (node, node_address)),
    )


def control_plane_leaves(address: str, api_service_address: str) -> tuple[Leaf, ...]:
    """The certificates of every cluster; the API server also answers on a ClusterIP."""
    server = ("localhost", address)
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc",
               "kubernetes.default.svc.cluster.local", api_service_address)  # fmt: skip
    return (
        Leaf("etcd", ETCD_CA, "etcd", hosts=server),
        Leaf("apiserver-etcd-client", ETCD_CA, "kube-apiserver-etcd-client"),
        Leaf("apiserver", CLUSTER_CA, "kube-apiserver", hosts=(*server, *service)),
        Leaf("apiserver-kubelet-client", KUBELET_CLIENT_CA, "kube-apiserver-kubelet-client"),
        Leaf("admin", CLUSTER_CA, "terrace-local-admin", "system:masters"),
        Leaf("controller-manager", CLUSTER_CA, "system:kube-controller-manager", hosts=server),
        Leaf("scheduler", CLUSTER_CA, "system:kube-scheduler", hosts=server),
    )


def write_pki(folder: Path, wanted: Iterable[Leaf], now: dt.datetime) -> None:
    """Make what is missing, expires within 30 days or serves other hosts; keep the rest."""
    for authority in (CLUSTER_CA, ETCD_CA, KUBELET_CLIENT_CA):
        if not (folder / f"{authority}.crt").exists():
            _write_authority(folder, authority, now)
    for leaf in wanted:
        if not _is_current(folder / f"{leaf.file}.crt", leaf, now):
            _write_leaf(folder, leaf, now)
    if not (folder / "service-account.pub").exists():
        _write_service_account_keys(folder)


def write_kubeconfig(path: Path, pki: Path, server: str, user: str, context: str) -> None:
    """A kubeconfig that stands for itself: certificates are embedded, so it can be copied."""
    data = {name: base64.b64encode((pki / name).read_bytes()).decode()
            for name in (f"{CLUSTER_CA}.crt", f"{user}.crt", f"{user}.key")}  # fmt: skip
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": context,
                "cluster": {"server": server, "certificate-authority-data": data["ca.crt"]},
            }
        ],
        "users": [
            {
                "name": f"{context}-{user}",
                "user": {
                    "client-certificate-data": data[f"{user}.crt"],
                    "client-key-data": data[f"{user}.key"],
                },
            }
        ],
        "contexts": [
            {"name": context, "context": {"cluster": context, "user": f"{context}-{user}"}}
        ],
        "current-context": context,
    }
    write_private(path, json.dumps(config, indent=1).encode())  # JSON is YAML


def _write_authority(folder: Path, name: str, now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"terrace-local-{name}")])
    usage = _key_usage(is_authority=True)
    certificate = (
        _builder(subject, subject, key, now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / f"{name}.key", _private_pem(key))
    write_private(folder / f"{name}.crt", _pem(certificate))


def _write_leaf(folder: Path, leaf: Leaf, now: dt.datetime) -> None:
    authority_key = serialization.load_pem_private_key(
        (folder / f"{leaf.authority}.key").read_bytes(), password=None
    )
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    authority = _load(folder / f"{leaf.authority}.crt")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name)]
    if leaf.organization:
        names.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, leaf.organization))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = _builder(x509.Name(names), authority.subject, key, now, _LEAF_DAYS)
    if leaf.hosts:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        hosts = x509.SubjectAlternativeName([_host(host) for host in leaf.hosts])
        builder = builder.add_extension(hosts, critical=False)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    # The key goes first: a certificate that is there is one that has its key.
    (folder / f"{leaf.file}.crt").unlink(missing_ok=True)
    write_private(folder / f"{leaf.file}.key", _private_pem(key))
    write_private(folder / f"{leaf.file}.crt", _pem(certificate))


def _write_service_account_keys(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_private(folder / "service-account.key", _private_pem(key))
    write_private(folder / "service-account.pub", public)


def _is_current(path: Path, leaf: Leaf, now: dt.datetime) -> bool:
    if not path.exists():
        return False
    certificate = _load(path)
    if certificate.not_valid_after_utc - now < _RENEW_BEFORE:
        return False
    try:
        served = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return not leaf.hosts
    return list(served) == [_host(host) for host in leaf.hosts]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
