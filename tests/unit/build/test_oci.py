"""OCI archives from a layout: the same bytes every time, under any name."""

from __future__ import annotations

import hashlib
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from build.oci import renamed, write_archive

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = (b"base", b"packages", b"packages")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """As buildah writes one, with the image ``gateway`` among others."""
    folder = tmp_path / "layout"
    (folder / "blobs/sha256").mkdir(parents=True)

    def put(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def image(name: str, config: bytes) -> dict[str, Any]:
        manifest = {"config": put(config), "layers": [put(layer) for layer in LAYERS]}
        descriptor = put(json.dumps(manifest).encode())
        return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}

    images = [image("operator", b"{}"), image("gateway", b'{"a":1}')]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": images}))
    return folder


def names_of(archive: Path) -> tuple[list[str], dict[str, Any]]:
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        (descriptor,) = json.load(index)["manifests"]
        return tar.getnames(), descriptor


def test_an_archive_holds_one_image_under_its_name_and_each_layer_once(
    layout: Path, tmp_path: Path
) -> None:
    told = write_archive(layout, "gateway", "localhost/terrace/gateway:1", tmp_path / "a.tar")
    names, descriptor = names_of(tmp_path / "a.tar")
    assert names[:2] == ["oci-layout", "index.json"]
    assert len(names) == len(set(names)) == 2 + 2 + len(set(LAYERS))
    assert descriptor["annotations"]["io.containerd.image.name"] == "localhost/terrace/gateway:1"
    assert told == {
        "name": "localhost/terrace/gateway:1",
        "digest": descriptor["digest"],
        "layers": [len(layer) for layer in LAYERS],
    }


def test_the_same_layout_gives_the_same_bytes(layout: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_archive(layout, "operator", "localhost/operator:1", tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_another_name_is_all_that_renaming_changes(layout: Path, tmp_path: Path) -> None:
    write_archive(layout, "operator", "localhost/operator:1", tmp_path / "a.tar")
    renamed(tmp_path / "a.tar", "localhost/operator:2", tmp_path / "b.tar")
    before, one = names_of(tmp_path / "a.tar")
    after, two = names_of(tmp_path / "b.tar")
    assert before == after
    assert one["digest"] == two["digest"]
    assert two["annotations"]["io.containerd.image.name"] == "localhost/operator:2"
    renamed(tmp_path / "b.tar", "localhost/operator:1", tmp_path / "c.tar")
    assert (tmp_path / "c.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_an_image_that_is_not_there_is_an_error(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="runtime"):
        write_archive(layout, "runtime", "localhost/runtime:1", tmp_path / "a.tar")
