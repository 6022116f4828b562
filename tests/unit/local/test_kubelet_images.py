"""OCI archives: what is in one, and packing a program as one."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from terrace.local.errors import LocalClusterError
from terrace.local.kubelets import oci

if TYPE_CHECKING:
    from pathlib import Path


def program(folder: Path, content: bytes = b"#!/bin/true\n") -> Path:
    path = folder / "program"
    path.write_bytes(content)
    return path


def archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_packed_program_is_found_again_by_name_and_digest(tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    oci.pack(made, "localhost/a:1", {"/a": program(tmp_path)}, ["/a"])
    (found,) = oci.references(made)
    assert found.name == "localhost/a:1"
    with tarfile.open(made) as tar:
        file = tar.extractfile(f"blobs/{found.digest.replace(':', '/')}")
        assert file
        manifest = json.loads(file.read())
        for blob in (manifest["config"], *manifest["layers"]):
            file = tar.extractfile(f"blobs/{blob['digest'].replace(':', '/')}")
            assert file
            data = file.read()
            assert blob["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert blob["size"] == len(data)


def test_the_layer_holds_the_program_as_one_that_runs(tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    oci.pack(made, "a:1", {"/bin/a": program(tmp_path)}, ["/bin/a", "x"], {"User": "1"})
    with tarfile.open(made) as tar:
        blobs = [tar.extractfile(name) for name in tar.getnames() if name.startswith("blobs/")]
        datas = [file.read() for file in blobs if file]
    config = json.loads(datas[0])
    assert config["config"] == {"Entrypoint": ["/bin/a", "x"], "User": "1"}
    with tarfile.open(fileobj=io.BytesIO(datas[1])) as layer:
        (member,) = layer.getmembers()
    assert (member.name, member.mode) == ("bin/a", 0o755)


def test_the_same_program_makes_the_same_image(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.tar", "b.tar"):
        oci.pack(tmp_path / name, "a:1", {"/a": program(tmp_path)}, ["/a"])
        digests.add(oci.references(tmp_path / name)[0].digest)
    oci.pack(tmp_path / "c.tar", "a:1", {"/a": program(tmp_path, b"other")}, ["/a"])
    assert len(digests) == 1
    assert oci.references(tmp_path / "c.tar")[0].digest not in digests


@pytest.mark.parametrize(
    "index",
    [b"{", b"[]", b'{"manifests": [{}]}', b'{"manifests": [1]}', b" " * 2_000_000, b"\xff"],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, index: bytes) -> None:
    with pytest.raises(LocalClusterError, match=r"a\.tar is no OCI archive: "):
        oci.references(archive(tmp_path / "a.tar", index_json=index))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="is no OCI archive"):
        oci.references(program(tmp_path))


def test_an_archive_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match=r"it holds no index\.json"):
        oci.references(archive(tmp_path / "a.tar", manifest_json=b"[]"))


def test_a_name_may_stand_under_either_annotation(tmp_path: Path) -> None:
    entries = [
        {"digest": "sha256:1", "annotations": {"org.opencontainers.image.ref.name": "a:1"}},
        {"digest": "sha256:2", "annotations": {"io.containerd.image.name": "b:1"}},
        {"digest": "sha256:3"},
    ]
    index = json.dumps({"manifests": entries}).encode()
    found = oci.references(archive(tmp_path / "a.tar", index_json=index))
    assert [each.name for each in found] == ["a:1", "b:1", ""]
