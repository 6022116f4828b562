"""Certificates and kubeconfigs of a local cluster."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from terrace.local.certificates import leaves, write_kubeconfig, write_pki

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LEAVES = leaves("host", "127.20.0.1", "127.20.0.2")


def certificate(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def is_issued_by(folder: Path, leaf: str, authority: str) -> bool:
    try:
        certificate(folder, leaf).verify_directly_issued_by(certificate(folder, authority))
    except (InvalidSignature, ValueError):
        return False
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_leaf_is_issued_by_its_own_authority_and_by_no_other(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    for leaf in LEAVES:
        for authority in ("ca", "etcd-ca", "kubelet-client-ca"):
            assert is_issued_by(tmp_path, leaf.file, authority) == (authority == leaf.authority)


def test_the_node_is_a_member_of_system_nodes_and_serves_its_address(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    node = certificate(tmp_path, "node")
    names = {attribute.oid: attribute.value for attribute in node.subject}
    assert names == {
        NameOID.ORGANIZATION_NAME: "system:nodes",
        NameOID.COMMON_NAME: "system:node:host",
    }
    hosts = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert str(hosts.get_values_for_type(x509.IPAddress)[0]) == "127.20.0.1"
    usages = node.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


def test_a_pure_client_cannot_serve(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    usages = certificate(tmp_path, "admin").extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert list(usages.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_only_the_owner_can_read_any_file(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    before = contents(tmp_path)
    write_pki(tmp_path, LEAVES, NOW + dt.timedelta(days=300))
    assert contents(tmp_path) == before


def test_leaves_are_renewed_before_they_expire_by_the_same_authorities(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    before = contents(tmp_path)
    write_pki(tmp_path, LEAVES, NOW + dt.timedelta(days=340))
    after = contents(tmp_path)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"{leaf.file}.{kind}" for leaf in LEAVES for kind in ("crt", "key")}


def test_only_what_serves_other_hosts_is_made_again(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    before = contents(tmp_path)
    write_pki(tmp_path, leaves("host", "127.21.0.1", "127.20.0.2"), NOW)
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"node.crt", "node.key"}


def test_a_key_without_certificate_is_an_interrupted_run_and_is_made_again(tmp_path: Path) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    (tmp_path / "admin.crt").unlink()
    write_pki(tmp_path, LEAVES, NOW)
    public = certificate(tmp_path, "admin").public_key()
    assert public != certificate(tmp_path, "scheduler").public_key()
    assert is_issued_by(tmp_path, "admin", "ca")


@pytest.mark.parametrize("user", ["admin", "node"])
def test_a_kubeconfig_stands_for_itself(tmp_path: Path, user: str) -> None:
    write_pki(tmp_path, LEAVES, NOW)
    path = tmp_path / "config"
    write_kubeconfig(path, tmp_path, "https://127.20.0.2:6443", user, "terrace-x")
    config = json.loads(path.read_text())
    cluster = config["clusters"][0]["cluster"]
    assert cluster["server"] == "https://127.20.0.2:6443"
    pem = base64.b64decode(config["users"][0]["user"]["client-certificate-data"])
    assert pem == (tmp_path / f"{user}.crt").read_bytes()
    assert str(tmp_path) not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
