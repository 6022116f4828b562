"""Image archives, opened as a container's root would look."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHIVES = Path(__file__).parents[2] / "dist/images"
NAMES = ("operator", "gateway", "runtime")


@dataclass(frozen=True)
class Image:
    """One image: its settings, and every path of its root with the entry that made it."""

    name: str
    config: dict[str, Any]
    layers: tuple[bytes, ...]
    """Compressed, lowest first."""
    entries: dict[str, tarfile.TarInfo]
    texts: dict[str, bytes]
    """Contents of small files that tests read."""

    def files(self) -> dict[str, tarfile.TarInfo]:
        """Entries that are plain files."""
        return {path: entry for path, entry in self.entries.items() if entry.isreg()}


def open_image(path: Path) -> Image:
    """Read an OCI archive with its only image."""
    with tarfile.open(path) as archive:
        blobs = {m.name: f.read() for m in archive if (f := archive.extractfile(m))}

    def blob(descriptor: dict[str, Any]) -> bytes:
        return blobs["blobs/" + descriptor["digest"].replace(":", "/")]

    (first,) = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blob(first))
    layers = tuple(blob(layer) for layer in manifest["layers"])
    entries: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, bytes] = {}
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as content:
            for entry in content:
                name = entry.name.removeprefix("./").rstrip("/")
                entries[name] = entry
                if entry.isreg() and name.endswith((".cdx.json", "/METADATA", "etc/passwd")):
                    file = content.extractfile(entry)
                    assert file is not None
                    texts[name] = file.read()
    return Image(path.stem, json.loads(blob(manifest["config"])), layers, entries, texts)
