"""Checks image archives against the wheel of a release, and takes their lists of parts.

Owns: whether this machine can make them, reading OCI archives, refusing one that holds other code
than the release. Does not own: making them (``make image-archives``). What lies in ``dist/images``
may be of any age, and of a tree that changed meanwhile; users would find out only after they
deployed it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import zipfile
from typing import IO, TYPE_CHECKING, Any

from build.workshop import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGES = ("operator", "gateway", "runtime")
_PROGRAMS = ("buildah", "debootstrap")
_SBOM = "opt/terrace/sbom.cdx.json"
_RECORD = re.compile(r"opt/terrace/lib/python3\.\d+/site-packages/terrace-[^/]+\.dist-info/RECORD")
_REMAKE = "make it again with `make image-archives`, or leave images out with IMAGES=no"


def lacking_for_images() -> str:
    """What keeps this machine from making image archives; empty when nothing does."""
    if sys.platform != "linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "building them needs root"
    sbin = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in _PROGRAMS if not shutil.which(name, path=sbin)]
    return f"there is no {' and no '.join(missing)} (apt-get install)" if missing else ""


def image_sbom(archive: Path, wheel: Path) -> bytes:
    """The list of parts in ``archive``. Raises BuildError when it was not made from ``wheel``."""
    sbom = record = None
    try:
        with tarfile.open(archive) as outer:
            for name, content in _ours(outer):
                if name == _SBOM:
                    sbom = sbom or content
                else:
                    record = record or content
                if sbom and record:
                    break
    except (tarfile.TarError, OSError, KeyError, ValueError, EOFError) as error:
        raise BuildError(f"{archive} is no OCI archive that can be read: {error}") from error
    if sbom is None or record is None:
        raise BuildError(f"{archive} holds no Terrace under /opt/terrace: {_REMAKE}")
    differing = _differing(record, wheel)
    if differing:
        raise BuildError(
            f"{archive} was made from other code than this release ({differing[0]} and "
            f"{len(differing) - 1} more files differ): {_REMAKE}"
        )
    return sbom


def _ours(outer: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """The files we read, those of upper layers first: they hide what lies below them."""
    for layer in _layers(outer):
        yield from _files(layer)


def _layers(outer: tarfile.TarFile) -> Iterator[IO[bytes]]:
    """The layers of the one image in the archive, uppermost first."""
    document = _json(outer, "index.json")
    while "manifests" in document:
        document = _json(outer, _blob(document["manifests"][0]["digest"]))
    for layer in reversed(document["layers"]):
        yield _open(outer, _blob(layer["digest"]))


def _files(layer: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=layer, mode="r|*") as members:
        for member in members:
            name = member.name.removeprefix("./").lstrip("/")
            if member.isfile() and (name == _SBOM or _RECORD.fullmatch(name)):
                content = members.extractfile(member)
                yield name, content.read() if content else b""


def _json(outer: tarfile.TarFile, name: str) -> Any:
    return json.load(_open(outer, name))


def _open(outer: tarfile.TarFile, name: str) -> IO[bytes]:
    file = outer.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _differing(record: bytes, wheel: Path) -> list[str]:
    """Files of the wheel that the image does not have, or has with other bytes."""
    rows = csv.reader(io.StringIO(record.decode()))
    installed = {row[0]: row[1] for row in rows if len(row) > 1}
    with zipfile.ZipFile(wheel) as archive:
        return sorted(
            info.filename
            for info in archive.infolist()
            if ".dist-info/" not in info.filename
            and installed.get(info.filename) != _record_hash(archive.read(info))
        )


def _record_hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return "sha256=" + digest.rstrip(b"=").decode()
