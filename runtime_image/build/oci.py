"""Writes OCI archives from an OCI layout: layers compressed once, the same bytes every time.

Owns: the form of the archives (OCI image layout 1.0 in a tar), the cache of compressed layers.
Does not own: how the layout came about (``archives.py`` has buildah write it, uncompressed).
Containers' stores know a layer by the digest of its uncompressed bytes; that is the cache's key.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

from build.digests import digest_of_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_NAME = "org.opencontainers.image.ref.name"
_LEVEL = 6


def write_archive(
    layout: Path, image: str, reference: str, target: Path, cache: Path
) -> dict[str, Any]:
    """Write the image called ``image`` in ``layout`` to ``target`` as ``reference``.

    Returns what a list of images tells: name, digest, compressed bytes of each layer.
    """
    manifest = _manifests(layout)[image]
    blobs = {manifest["config"]["digest"]: layout / _place(manifest["config"]["digest"])}
    layers = []
    for layer in manifest["layers"]:
        path = _compressed(layout / _place(layer["digest"]), layer["digest"], cache)
        digest = f"sha256:{digest_of_file(path)}"
        blobs[digest] = path
        size = path.stat().st_size
        layers.append({"mediaType": f"{_LAYER}+gzip", "digest": digest, "size": size})
    config = manifest["config"]
    body = _bytes({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    digest = _write(target, reference, body, blobs)
    return {"name": reference, "digest": digest, "layers": [layer["size"] for layer in layers]}


def renamed(archive: Path, reference: str, target: Path) -> None:
    """Write ``archive`` again under another name: the same image with another tag."""
    with tarfile.open(archive) as old, tarfile.open(target, "w") as new:
        for member in old.getmembers():
            content = old.extractfile(member)
            data = content.read() if content else b""
            if member.name == "index.json":
                index = json.loads(data)
                index["manifests"][0]["annotations"] = _names(reference)
                data = _bytes(index)
            _add(new, member.name, data)


def prune(layout: Path, cache: Path) -> None:
    """Remove blobs and compressed layers that no image of ``layout`` has."""
    index = json.loads((layout / "index.json").read_bytes())
    kept = {image["digest"] for image in index["manifests"]}
    for manifest in _manifests(layout).values():
        kept |= {each["digest"] for each in (manifest["config"], *manifest["layers"])}
    names = {digest.partition(":")[2] for digest in kept}
    for path in (*layout.glob("blobs/sha256/*"), *cache.glob("*.gz")):
        if path.stem not in names:
            path.unlink(missing_ok=True)


def _manifests(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_bytes())
    return {
        image["annotations"][_NAME]: json.loads((layout / _place(image["digest"])).read_bytes())
        for image in index["manifests"]
    }


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _names(reference: str) -> dict[str, str]:
    return {"io.containerd.image.name": reference, _NAME: reference}


def _compressed(layer: Path, digest: str, cache: Path) -> Path:
    """The gzip of ``layer``, from the cache when it is there."""
    path = cache / f"{digest.partition(':')[2]}.gz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            # Without a name and with the date 0: equal layers give equal bytes.
            with (
                layer.open("rb") as source,
                partial.open("wb") as sink,
                gzip.GzipFile("", "wb", _LEVEL, sink, mtime=0) as stream,
            ):
                shutil.copyfileobj(source, stream, 1 << 20)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _write(target: Path, reference: str, manifest: bytes, blobs: Mapping[str, Path]) -> str:
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    image = {"mediaType": MANIFEST, "digest": digest, "size": len(manifest)}
    index = {"schemaVersion": 2, "manifests": [{**image, "annotations": _names(reference)}]}
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", _bytes({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _bytes(index))
        _add(archive, _place(digest), manifest)
        for name, path in blobs.items():
            entry = tarfile.TarInfo(_place(name))
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return digest


def _bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
