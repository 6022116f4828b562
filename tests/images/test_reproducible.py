"""The same wheelhouse gives the same image, byte for byte, also without anything kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from build.archives import Inputs, Store, build_context, project_version
from build.base import find_base
from build.oci import renamed, write_archive
from build.source import REPOSITORY
from build.workshop import cached
from support.images import ARCHIVES, open_image

if TYPE_CHECKING:
    from pathlib import Path

    from build.workshop import Workshop
    from support.images import Image


@pytest.mark.timeout(400)
def test_a_build_from_nothing_gives_the_same_bytes(
    images: dict[str, Image], tmp_path: Path
) -> None:
    inputs = Inputs(REPOSITORY / "dist/wheelhouse", find_base(), project_version())
    listed = json.loads((ARCHIVES / "images.json").read_text())
    assert listed["key"] == inputs.key, "dist/images is not of this tree: run make image-archives"

    def make(workshop: Workshop, folder: Path) -> None:
        store = Store(workshop, workshop.staging / "store")  # gone afterwards: it is large
        arguments = {**store.bases(inputs.base), "IMAGES": "gateway"}  # the others change nothing
        store.build(build_context(workshop, inputs), "gateway", arguments)
        reference = listed["images"]["gateway"]["name"]
        write_archive(store.layout, "gateway", reference, folder / "gateway.tar")

    again = cached(tmp_path / "again", make) / "gateway.tar"
    rebuilt = open_image(again)
    for ours, theirs in zip(images["gateway"].layers, rebuilt.layers, strict=True):
        assert ours == theirs
    assert again.read_bytes() == (ARCHIVES / "gateway.tar").read_bytes()


def test_another_name_changes_nothing_else(images: dict[str, Image], tmp_path: Path) -> None:
    other = tmp_path / "operator.tar"
    renamed(ARCHIVES / "operator.tar", "localhost/terrace/operator:other", other)
    again = open_image(other)
    assert again.layers == images["operator"].layers
    assert again.config == images["operator"].config
    assert b"localhost/terrace/operator:other" in other.read_bytes()[:8192]
