"""A repository of its own with the files of this one, and releases made in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from build.source import REPOSITORY
from terrace.local.binaries import cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAKE = "runtime_image/build/release/make.py"
_AUTHOR = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=no")


@dataclass
class Repository:
    """A git checkout, and how programs are run in it."""

    folder: Path
    umask: int = 0o022
    environment: Mapping[str, str] = field(default_factory=dict)

    def git(self, *arguments: str) -> str:
        return _run(["git", "-C", str(self.folder), *_AUTHOR, *arguments]).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "All of it")

    def replace(self, name: str, old: str, new: str) -> None:
        """Change one place of one file."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new))

    def release(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the release program of this checkout; images are left out unless named."""
        return subprocess.run(
            [sys.executable, str(self.folder / MAKE), str(folder), "--images", "no", *options],
            env={**_environment(), **self.environment},
            umask=self.umask,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@dataclass(frozen=True)
class Releases:
    """Two releases of one commit, and what was said of the first one."""

    first: Path
    second: Path
    said: str


def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv") or shutil.which(REPOSITORY / ".uv/bin/uv")
    assert found, "there is no uv: run `make init`"
    return str(found)


def _our_files() -> list[str]:
    """What git tracks here, or would if it were added."""
    listed = _run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "-co", "--exclude-standard"]
    ).stdout
    return sorted({name for name in listed.split("\0") if name and (REPOSITORY / name).exists()})


def copy_of_ours(folder: Path) -> Repository:
    """The working tree as it is, as the one commit of a new repository."""
    for name in _our_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    repository = Repository(folder)
    repository.git("init", "--quiet")
    repository.commit()
    return repository


def clone_of(repository: Repository, folder: Path) -> Repository:
    _run(["git", "clone", "--quiet", str(repository.folder), str(folder)])
    return Repository(folder)


def _environment() -> dict[str, str]:
    """Ours, with the caches named: a release under another HOME must not fetch all anew."""
    kept = {name: value for name, value in os.environ.items() if name != "ALLOW_DIRTY"}
    cache = _run([uv(), "cache", "dir"]).stdout.strip()
    return {**kept, "UV": uv(), "UV_CACHE_DIR": cache, "TERRACE_K8S_BIN": str(cache_folder())}


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done
