"""Folders of files that change all at once, as kubelet publishes ConfigMaps and Secrets.

Owns: the ``..data`` switch: readers see the old files or the new ones, never a mixture. Does not
own: what the files hold (``volumes.py``). Source: Kubernetes' AtomicWriter, its layout on disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_CURRENT = "..data"


@dataclass(frozen=True)
class File:
    """What one file holds, and its permission bits."""

    content: bytes
    mode: int = 0o644


def is_inside(path: str) -> bool:
    """Whether a relative path stays below where it starts."""
    return bool(path) and not path.startswith("/") and ".." not in path.split("/")


def publish(folder: Path, files: Mapping[str, File]) -> bool:
    """Makes ``folder`` hold exactly ``files`` (relative path -> file); True if that is news."""
    if _published(folder) == dict(files):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    fresh.chmod(0o755)
    for name, file in files.items():
        if not is_inside(name):
            raise ValueError(f"the path {name!r} leaves its volume")
        target = fresh / name
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.content)
        target.chmod(file.mode)
    _switch(folder, fresh)
    _link_top(folder, {name.split("/", 1)[0] for name in files})
    return True


def _switch(folder: Path, fresh: Path) -> None:
    current = folder / _CURRENT
    stale = current.resolve() if current.is_symlink() else None
    pending = folder / "..data_tmp"
    pending.unlink(missing_ok=True)
    pending.symlink_to(fresh.name)
    pending.replace(current)
    if stale is not None and stale.parent == folder.resolve():
        shutil.rmtree(stale, ignore_errors=True)


def _link_top(folder: Path, names: set[str]) -> None:
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in names:
            entry.unlink()
    for name in names:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"{_CURRENT}/{name}")


def _published(folder: Path) -> dict[str, File] | None:
    current = folder / _CURRENT
    if not current.is_symlink():
        return None
    return {
        str(path.relative_to(current)): File(path.read_bytes(), path.stat().st_mode & 0o777)
        for path in current.rglob("*")
        if path.is_file()
    }
