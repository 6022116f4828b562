"""Where the programs of the control plane come from.

Owns: the order of the sources: ``--bin`` or TERRACE_K8S_BIN, the user's cache, official releases,
a build from the Go modules. Does not own: fetching (``releases.py``) and building (``build.py``).
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from terrace.local.build import build, find_go, locked
from terrace.local.errors import LocalClusterError
from terrace.local.releases import ReleaseError, UnreachableError, fetch, release_of
from terrace.local.versions import cache_key

BIN_VARIABLE = "TERRACE_K8S_BIN"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Report = Callable[[str], None]


def find_binaries(names: Sequence[str], bin_dir: Path | None, report: Report) -> Mapping[str, Path]:
    """A path for each name, from the first source that has it; brings what is missing."""
    if sys.platform != "linux":
        raise LocalClusterError(f"a local cluster needs Linux; this is {sys.platform}")
    given = _given_folder(bin_dir)
    cache = cache_folder()
    found = {}
    for name in names:
        for folder in (given, cache):
            if folder and name not in found and os.access(folder / name, os.X_OK):
                found[name] = folder / name
    missing = [name for name in names if name not in found]
    if missing:
        if given:
            report(f"{', '.join(missing)} not in {given}")
        with locked(cache, report):
            found |= _bring(missing, cache, report)
    return found


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/terrace/k8s/<key>``; a new version gets a new folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "terrace" / "k8s" / cache_key()


def _given_folder(bin_dir: Path | None) -> Path | None:
    named = bin_dir or os.environ.get(BIN_VARIABLE)
    if not named:
        return None
    folder = Path(named).absolute()
    if not folder.is_dir():
        source = "--bin" if bin_dir else BIN_VARIABLE
        raise LocalClusterError(f"{source} names {folder}, which is no folder")
    return folder


def _bring(names: Sequence[str], cache: Path, report: Report) -> dict[str, Path]:
    """Download or build into the cache, whose lock we hold."""
    for leftover in cache.glob(".*.part"):
        leftover.unlink()  # of a process that was killed: whoever lives would hold the lock
    unreachable: set[str] = set()
    go: Path | None = None
    for index, name in enumerate(names, start=1):
        target = cache / name
        if os.access(target, os.X_OK):
            continue  # the one we waited for brought it
        place = f"{name} ({index} of {len(names)})"
        began = time.monotonic()
        if _download(name, target, unreachable, report):
            report(f"{place}: downloaded in {time.monotonic() - began:.0f} s")
            continue
        go = go or find_go(cache.parent, report)
        report(f"{place}: building from its Go module")
        build(name, target, go, report)
        report(f"{place}: built in {time.monotonic() - began:.0f} s")
    return {name: cache / name for name in names}


def _download(name: str, target: Path, unreachable: set[str], report: Report) -> bool:
    release = release_of(name, _ARCHITECTURES.get(platform.machine(), platform.machine()))
    if release is None or release.host in unreachable:
        return False
    try:
        fetch(release, target, report)
    except UnreachableError as error:
        unreachable.add(release.host)
        report(f"no official release: {error}")
        return False
    except ReleaseError as error:
        report(f"official release refused: {error}")
        return False
    return True
