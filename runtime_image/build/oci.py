"""Writes OCI archives from an OCI layout, the same bytes every time.

Owns: the form of the archives (OCI image layout 1.0 in a tar, with the name that container runtimes
import them by), giving an archive another name. Does not own: how the layout came about
(``archives.py`` has buildah write it).
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "org.opencontainers.image.ref.name"


def write_archive(layout: Path, image: str, reference: str, target: Path) -> dict[str, Any]:
    """Write the image called ``image`` in ``layout`` to ``target`` as ``reference``.

    Returns what a list of images tells: name, digest, and the compressed bytes of each layer.
    """
    descriptor = _images(layout)[image]
    manifest = json.loads((layout / _place(descriptor["digest"])).read_bytes())
    blobs = [descriptor, manifest["config"], *manifest["layers"]]
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", _index(descriptor, reference))
        # Two layers may be the same bytes.
        for name in dict.fromkeys(_place(blob["digest"]) for blob in blobs):
            entry = tarfile.TarInfo(name)
            entry.size = (layout / name).stat().st_size
            with (layout / name).open("rb") as file:
                archive.addfile(entry, file)
    sizes = [layer["size"] for layer in manifest["layers"]]
    return {"name": reference, "digest": descriptor["digest"], "layers": sizes}


def renamed(archive: Path, reference: str, target: Path) -> None:
    """Write the image of ``archive`` to ``target`` under another name."""
    with tarfile.open(archive) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = old.extractfile(member)
            data = content.read() if content else b""
            if member.name == "index.json":
                (descriptor,) = json.loads(data)["manifests"]
                data = _index(descriptor, reference)
            _add(new, member.name, data)


def _images(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_bytes())
    return {image["annotations"][_NAME]: image for image in index["manifests"]}


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _index(descriptor: dict[str, Any], reference: str) -> bytes:
    names = {"io.containerd.image.name": reference, _NAME: reference}
    index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": names}]}
    return json.dumps(index, sort_keys=True).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
