"""Image archives, opened as a container's root would look."""

from __future__ import annotations

import io
import json
import subprocess
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


def run_in(root: Path, code: str) -> Any:
    """What ``code`` prints as JSON in the image, as its user, with /proc and /dev alone."""
    inside = ["chroot", "--userspec=65532:65532", str(root), "/opt/terrace/bin/python", "-c", code]
    mounted = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", mounted, str(root), *inside]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
