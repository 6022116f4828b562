"""The pinned source of everything native: llama-cpp-python's sdist, which holds all of llama.cpp.

Owns: reading its name and checksum from ``uv.lock`` and fetching it through pip, so that the user's
index, mirror, proxy and certificates hold. Does not own: unpacking or building it. Next:
``wheel.py``, ``tests/bench/peer.py``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from build.workshop import BuildError, Workshop, cached

if TYPE_CHECKING:
    from collections.abc import Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "llama-cpp-python"


@dataclass(frozen=True)
class Sdist:
    """One source distribution as ``uv.lock`` pins it."""

    name: str
    version: str
    sha256: str
    filename: str


def locked_sdist(lock: Path, name: str = PACKAGE) -> Sdist:
    """Return the sdist of ``name`` that ``lock`` pins. Raises BuildError."""
    try:
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise BuildError(f"cannot read {lock}: {error}") from error
    for package in packages:
        if package.get("name") == name and "sdist" in package:
            source = package["sdist"]
            algorithm, _, digest = source.get("hash", "").partition(":")
            if algorithm != "sha256":
                raise BuildError(f"{lock} pins no sha256 for the sdist of {name}: run uv lock")
            return Sdist(name, package["version"], digest, source["url"].rsplit("/", 1)[-1])
    raise BuildError(f"{lock} pins no sdist of {name}: run uv lock")


def fetch_sdist(sdist: Sdist, cache: Path) -> Path:
    """Return the sdist's file, fetched by pip from the user's index when it is not cached.

    pip knows the user's index, mirror, proxy and certificates; ``--require-hashes`` holds it to
    what ``uv.lock`` pins. The checksum is checked again on every use.
    """

    def make(workshop: Workshop, folder: Path) -> None:
        pin = workshop.staging / "requirements.txt"
        pin.write_text(f"{sdist.name}=={sdist.version} --hash=sha256:{sdist.sha256}\n")
        options = ("--no-deps", "--no-binary", sdist.name, "--require-hashes", "-r", str(pin))
        argv = [*pip_command(), "download", *options, "--dest", str(folder)]
        workshop.run(argv, f"fetching {sdist.filename}", index_environment())

    path = cached(cache / "sdists" / sdist.sha256[:16], make) / sdist.filename
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sdist.sha256:
        raise BuildError(f"{path} has sha256 {digest}, uv.lock pins {sdist.sha256}: remove it.")
    return path


def pip_command() -> list[str]:
    """How pip is run here: this Python's own, else the one that uv brings. Raises BuildError."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    bootstrapped = REPOSITORY / ".uv/bin/uv"
    uv = os.environ.get("UV") or shutil.which("uv") or shutil.which(bootstrapped)
    if not uv:
        raise BuildError(f"{sys.executable} has no pip and there is no uv: run `make init`.")
    return [
        str(uv),
        "tool",
        "run",
        "--python",
        sys.executable,
        "pip",
        "--disable-pip-version-check",
    ]


def index_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``environment`` in which pip uses the index that the user named for uv alone."""
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    return {**({"PIP_INDEX_URL": index} if index else {}), **environment}
