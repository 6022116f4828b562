"""Takes the source of a release out of git, the same on every machine.

Owns: refusing a tree with changes that no commit has, the moment of the last commit, and a copy of
the tracked files whose modes and times follow from that commit alone. Does not own: what is built
from the copy (``make.py``). Everything is built from the copy, so that neither the folder, the
umask nor an ignored file of the working tree can show in what users get.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from build.workshop import BuildError

if TYPE_CHECKING:
    from pathlib import Path

_LISTED_CHANGES = 5


@dataclass(frozen=True)
class Source:
    """One state of the repository, copied to ``folder``."""

    folder: Path
    commit: str
    epoch: int
    """Seconds since 1970 of the last commit: SOURCE_DATE_EPOCH of all that is built."""
    is_dirty: bool
    """The working tree held changes, and the copy has them."""


def take_source(repository: Path, folder: Path, *, allow_dirty: bool) -> Source:
    """Copy the files that git knows to ``folder``. Raises BuildError."""
    if not (repository / ".git").exists():
        raise BuildError(
            f"{repository} is no git checkout: a release is made from a commit "
            "(a source distribution can be built with `uv build`, tested with `make test-all`)"
        )
    changes = _git(repository, "status", "--porcelain", "--untracked-files=all").splitlines()
    if changes and not allow_dirty:
        raise BuildError(_refusal(changes))
    commit, epoch = _git(repository, "log", "-1", "--format=%H %ct").split()
    tracked = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in sorted(set(tracked.split("\0")) - {""}):
        if os.path.lexists(repository / name):  # absent when deleted and not committed yet
            _copy(repository / name, folder / name)
    _settle(folder, int(epoch))
    return Source(folder, commit, int(epoch), bool(changes))


def _refusal(changes: list[str]) -> str:
    shown = "\n".join(f"  {line}" for line in changes[:_LISTED_CHANGES])
    more = len(changes) - _LISTED_CHANGES
    rest = f"\n  and {more} more" if more > 0 else ""
    return (
        f"the working tree differs from the last commit:\n{shown}{rest}\n"
        "Commit or remove these, or try a release of them with ALLOW_DIRTY=1."
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)
    if not target.is_symlink():
        # The one bit of a mode that git keeps.
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def _settle(folder: Path, epoch: int) -> None:
    """Give every file and folder the same time, the folders last: a new file changes theirs."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, without a shell
            ["git", "-C", str(repository), *arguments],  # noqa: S607 - the user's git
            capture_output=True,
            check=True,
            timeout=60,
        )
    except FileNotFoundError:
        raise BuildError("there is no git: install it (Debian: apt-get install git)") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise BuildError(f"git {arguments[0]} failed in {repository}: {said}") from error
    return done.stdout.decode(errors="surrogateescape")
