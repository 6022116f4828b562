"""One commit of this tree, released twice under circumstances that have nothing in common."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from build.source import REPOSITORY
from support.releases import Releases, Repository, clone_of, copy_of_ours
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from pathlib import Path

_LONG_AGO = 1_000_000_000


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Only for reading: tests that change files clone it."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("a release is made from a git checkout, and this is none")
    find_binaries(["helm"], None, print)
    return copy_of_ours(tmp_path_factory.mktemp("repository") / "one")


@pytest.fixture
def clone(repository: Repository, tmp_path: Path) -> Repository:
    return clone_of(repository, tmp_path / "clone")


@pytest.fixture(scope="session")
def releases(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    home = elsewhere / "home"
    home.mkdir()
    other = clone_of(repository, elsewhere / "a longer name than the first" / "zwei")
    other.umask = 0o077
    # Without a network either: another home has no settings of an index or a proxy.
    other.environment = {
        "HOME": str(home),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "UV_OFFLINE": "1",
    }
    for path in other.folder.rglob("*"):
        if ".git" not in path.parts and path.is_file():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
            os.utime(path, (_LONG_AGO, _LONG_AGO))
    first, second = elsewhere / "first", elsewhere / "out" / "second"
    made = [repository.release(first), other.release(second)]
    for done in made:
        assert done.returncode == 0, done.stderr
    return Releases(first, second, made[0].stdout)
