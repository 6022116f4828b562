"""The /tmp of a container: a folder with a short name, gone when its pod ends.

Owns: making and removing it. It lies in the machine's own temporary folder and is linked from the
container's root, because a Unix socket's path has at most 107 bytes and a pod's root is longer.
Next: ``volumes.lay_out`` makes it, ``pod.py`` and ``guard.py`` remove it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "terrace-pod-"


def make(root: Path) -> None:
    """Gives ``root`` a fresh, empty tmp."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "tmp").symlink_to(tempfile.mkdtemp(prefix=_PREFIX))


def path_of(root: Path) -> str:
    """What TMPDIR says: the folder itself, by its short name."""
    return str((root / "tmp").readlink())


def remove(root: Path) -> None:
    """Removes it, if there is one and it is one of ours: the container may have moved the link."""
    link = root / "tmp"
    try:
        folder = link.readlink()
        status = folder.lstat()
    except OSError:
        return
    is_ours = folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith(_PREFIX)
    if is_ours and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
        shutil.rmtree(folder, ignore_errors=True)


def remove_all(pod_folder: Path) -> None:
    """Those of all containers of one pod."""
    for root in pod_folder.glob("containers/*/root"):
        remove(root)
