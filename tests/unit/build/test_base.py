"""The base of images without a registry: which release, and what of it is kept."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

import pytest

from build.base import choose_suite, closure, slim_files, write_tar
from build.digests import digest_of
from build.workshop import BuildError

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = {
    "base-files": [],
    "python3": ["python3.11", "dpkg"],
    "python3.11": ["libc6", "libssl3"],
    "libssl3": ["libc6", "debconf"],
    "libc6": [],
    "debconf": ["perl-base"],
    "perl-base": [],
    "dpkg": ["tar"],
    "bash": [],
}


@pytest.mark.parametrize(
    ("python", "libc", "name"),
    [((3, 11), "2.36", "bookworm"), ((3, 11), "2.31", "bookworm"), ((3, 13), "2.41", "trixie")],
)
def test_the_release_is_the_one_with_the_wheels_python(
    python: tuple[int, int], libc: str, name: str
) -> None:
    assert choose_suite(python, libc).name == name


@pytest.mark.parametrize(
    ("python", "libc", "words"),
    [
        ((3, 12), "2.36", r"wheels are for Python 3\.12.*bookworm 3\.11.*make images BASE=IMAGE"),
        ((3, 11), "2.41", r"glibc 2\.41, and Debian bookworm has 2\.36.*PYTHON=python3\.11"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(
    python: tuple[int, int], libc: str, words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        choose_suite(python, libc)


def test_what_python_needs_is_kept_and_what_installs_packages_is_not() -> None:
    kept = closure(PACKAGES, ["base-files", "python3"])
    assert kept == ["base-files", "libc6", "libssl3", "python3", "python3.11"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small Debian: python3 and bash, one of them kept."""
    root = tmp_path / "root"
    files = {
        "usr/bin/python3": "#!", "usr/bin/python3.11": "#!", "usr/bin/pydoc3": "#!",
        "usr/bin/bash": "#!", "usr/share/doc/python3/copyright": "PSF",
        "usr/share/doc/python3/changelog.gz": "", "usr/share/man/man1/python3.1.gz": "",
        "usr/lib/python3.11/os.py": "", "usr/lib/python3.11/test/support.py": "",
        "usr/lib/python3.11/__pycache__/os.cpython-311.pyc": "",
        "etc/ssl/certs/ca-certificates.crt": "CERT", "etc/nsswitch.conf": "hosts: files dns",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(
        "Package: python3\nDepends: dpkg (>= 1), bash | zsh\n\nPackage: bash\n"
    )
    listed = [name for name in files if "python3" in name or "pydoc3" in name]
    (info / "python3.list").write_text("".join(f"/{name}\n" for name in ["usr", *listed]))
    (info / "bash.list").write_text("/bin/bash\n/.\n")
    (root / "usr/bin/python3").chmod(0o4755)
    return root


def test_the_small_tree_has_no_program_but_python(tree: Path) -> None:
    kept = slim_files(tree)
    assert [name for name in kept if name.startswith("usr/bin/")] == [
        "usr/bin/python3",
        "usr/bin/python3.11",
    ]
    assert "usr/share/doc/python3/copyright" in kept
    assert "usr/lib/python3.11/__pycache__/os.cpython-311.pyc" in kept
    assert "etc/ssl/certs/ca-certificates.crt" in kept
    left = ("changelog", "man1", "/test")
    assert not [name for name in kept if any(word in name for word in left)]
    assert kept == sorted(kept)


def test_an_archive_of_it_has_one_owner_one_date_and_nothing_that_changes_who_runs_it(
    tree: Path, tmp_path: Path
) -> None:
    names = slim_files(tree)
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, tree, names, {"etc/passwd": "root:x:0:0::/:/none\n"})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = {member.name: member for member in archive}
    assert {(m.uid, m.gid, m.mtime) for m in members.values()} == {(0, 0, 0)}
    assert members["usr/bin/python3"].mode == 0o755
    assert members["etc/passwd"].size == len("root:x:0:0::/:/none\n")
    assert members["usr/lib/ssl/cert.pem"].linkname == "/etc/ssl/certs/ca-certificates.crt"


def test_where_one_part_of_a_key_ends_counts() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
