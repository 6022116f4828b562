"""Only images made from the very code of a release go into it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from build.release.images import IMAGES, image_sbom
from build.workshop import BuildError
from terrace import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.releases import Releases, Repository

SITE = "opt/terrace/lib/python3.11/site-packages"
PARTS = b'{"bomFormat": "CycloneDX"}\n'


def tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def oci_archive(path: Path, layers: list[bytes]) -> Path:
    """An archive as `buildah push IMAGE oci-archive:PATH` leaves it."""
    blobs: dict[str, bytes] = {}

    def add(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    described = [
        add(gzip.compress(layer), "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers
    ]
    manifest = json.dumps({"schemaVersion": 2, "layers": described}).encode()
    index = {"manifests": [add(manifest, "application/vnd.oci.image.manifest.v1+json")]}
    path.write_bytes(tar_of({**blobs, "index.json": json.dumps(index).encode()}))
    return path


def installed(wheel: Path, changed: str = "") -> dict[str, bytes]:
    """What an image holds after pip installed ``wheel`` there."""
    lines = [f"../../../bin/terrace,sha256=abc,12\n{SITE}/later.pyc,,\n"]
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            content = archive.read(info) + (b"#" if info.filename == changed else b"")
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            lines.append(f"{info.filename},sha256={digest.rstrip('=')},{len(content)}\n")
    record = f"./{SITE}/terrace-{__version__}.dist-info/RECORD"
    return {"./opt/terrace/sbom.cdx.json": PARTS, record: "".join(lines).encode()}


@pytest.fixture
def wheel(releases: Releases) -> Path:
    return releases.first / f"terrace-{__version__}-py3-none-any.whl"


def test_an_image_of_this_code_gives_its_list_of_parts(wheel: Path, tmp_path: Path) -> None:
    base = tar_of({"etc/os-release": b"ID=debian\n"})
    archive = oci_archive(tmp_path / "operator.tar", [base, tar_of(installed(wheel))])
    assert image_sbom(archive, wheel) == PARTS


def test_an_upper_layer_hides_the_code_below_it(wheel: Path, tmp_path: Path) -> None:
    old = tar_of(installed(wheel, changed="terrace/__init__.py"))
    archive = oci_archive(tmp_path / "operator.tar", [old, tar_of(installed(wheel))])
    assert image_sbom(archive, wheel) == PARTS


def test_an_image_of_other_code_is_refused_by_its_file(wheel: Path, tmp_path: Path) -> None:
    layer = tar_of(installed(wheel, changed="terrace/__init__.py"))
    with pytest.raises(BuildError, match=r"terrace/__init__\.py .*make image-archives"):
        image_sbom(oci_archive(tmp_path / "operator.tar", [layer]), wheel)


def test_an_image_without_terrace_is_refused(wheel: Path, tmp_path: Path) -> None:
    archive = oci_archive(tmp_path / "operator.tar", [tar_of({"etc/os-release": b"ID=debian\n"})])
    with pytest.raises(BuildError, match="holds no Terrace"):
        image_sbom(archive, wheel)


@pytest.mark.parametrize("damage", ["not a tar", "no index", "cut", "dangling"])
def test_what_is_no_archive_is_refused(wheel: Path, tmp_path: Path, damage: str) -> None:
    archive = oci_archive(tmp_path / "operator.tar", [tar_of(installed(wheel))])
    if damage == "not a tar":
        archive.write_bytes(b"PK" * 1000)
    elif damage == "no index":
        archive.write_bytes(tar_of({"oci-layout": b"{}"}))
    elif damage == "cut":
        archive.write_bytes(archive.read_bytes()[:700])
    else:
        gone = {"manifests": [{"digest": "sha256:" + "0" * 64}]}
        archive.write_bytes(tar_of({"index.json": json.dumps(gone).encode()}))
    with pytest.raises(BuildError, match="no OCI archive"):
        image_sbom(archive, wheel)


def test_a_release_takes_checked_images_and_their_parts(
    repository: Repository, wheel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in IMAGES:
        oci_archive(folder / f"{name}.tar", [tar_of(installed(wheel))])
    done = repository.release(tmp_path / "out", "--images", "yes", "--image-archives", str(folder))
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout
    sums = (tmp_path / "out/SHA256SUMS").read_text()
    for name in IMAGES:
        stem = f"terrace-{name}-{__version__}.image"
        assert (tmp_path / "out" / f"{stem}.cdx.json").read_bytes() == PARTS
        assert (tmp_path / "out" / f"{stem}.tar").read_bytes() == (
            folder / f"{name}.tar"
        ).read_bytes()
        assert f"  {stem}.tar\n" in sums
