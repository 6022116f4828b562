"""OCI archives: what is in one, and packing a program as one.

Owns: reading the index of an archive (untrusted: bounded) and writing an image of one layer. Pure
but for the archive itself. Does not own: getting it into a node (``images.py``).
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from terrace.local.errors import LocalClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_MAX_INDEX_BYTES = 1024 * 1024
_NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE = "application/vnd.oci.image"


@dataclass(frozen=True)
class ImageReference:
    """One image of an archive."""

    name: str
    """Such as ``localhost/terrace/runtime:0.1.0``."""
    digest: str
    """Of its manifest or index, such as ``sha256:...``."""


def references(archive: Path) -> list[ImageReference]:
    """The images of an OCI archive; raises LocalClusterError when it is none."""
    try:
        with tarfile.open(archive) as tar:
            member = tar.next()
            while member is not None and member.name.removeprefix("./") != "index.json":
                member = tar.next()
            file = tar.extractfile(member) if member is not None else None
            if file is None:
                raise LocalClusterError(f"{archive} is no OCI archive: it holds no index.json")
            index = json.loads(file.read(_MAX_INDEX_BYTES))
        return [
            ImageReference(_name(entry.get("annotations") or {}), str(entry["digest"]))
            for entry in index["manifests"]
        ]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LocalClusterError(f"{archive} is no OCI archive: {error!r}") from error


def pack(
    archive: Path,
    name: str,
    files: Mapping[str, Path],
    entrypoint: Sequence[str],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write an image of one layer; ``files``: path in the image -> program to copy there."""
    layer = _layer(files)
    blobs: dict[str, bytes] = {}
    content = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _add(blobs, f"{_TYPE}.config.v1+json", json.dumps(content).encode()),
        "layers": [_add(blobs, f"{_TYPE}.layer.v1.tar", layer)],
    }
    entry = _add(blobs, f"{_TYPE}.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = dict.fromkeys(_NAME_KEYS, name)
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with tarfile.open(archive, "w") as tar:
        _write(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _write(tar, "index.json", index)
        for digest, data in blobs.items():
            _write(tar, f"blobs/{digest.replace(':', '/')}", data)


def _name(annotations: Mapping[str, Any]) -> str:
    return next((str(annotations[key]) for key in _NAME_KEYS if key in annotations), "")


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, source in files.items():
            _write(tar, path.lstrip("/"), source.read_bytes(), 0o755)
    return buffer.getvalue()


def _write(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _add(blobs: dict[str, bytes], media_type: str, data: bytes) -> dict[str, Any]:
    blobs[_digest(data)] = data
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
