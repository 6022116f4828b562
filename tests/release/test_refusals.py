"""What stops a release, and that nothing is lost then."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from terrace import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from support.releases import Repository

OTHER = "9.9.9"


def refusal(repository: Repository, folder: Path, *options: str) -> str:
    done = repository.release(folder, *options)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert not folder.exists()
    return done.stderr


def test_a_tree_with_changes_is_refused_by_name(clone: Repository, tmp_path: Path) -> None:
    (clone.folder / "examples/new.yaml").write_text("kind: New\n")
    clone.replace("pyproject.toml", f'version = "{__version__}"', f'version = "{OTHER}"')
    said = refusal(clone, tmp_path / "out")
    assert " M pyproject.toml" in said
    assert "?? examples/new.yaml" in said
    assert "ALLOW_DIRTY=1" in said


def test_a_release_of_changes_says_so_and_why_it_has_no_images(
    clone: Repository, tmp_path: Path
) -> None:
    (clone.folder / "examples/new.yaml").write_text("kind: New\n")
    (clone.folder / "dist").mkdir()
    (clone.folder / "dist/ignored").write_text("not ours to give away\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(str(shutil.which("git")))
    clone.environment = {"ALLOW_DIRTY": "1", "PATH": str(programs)}
    done = clone.release(tmp_path / "out", "--images", "auto")
    assert done.returncode == 0, done.stderr
    assert "NOT FOR PUBLISHING" in done.stdout
    assert re.search(r"left out: the images .*: (there is no buildah|.* needs root)", done.stdout)
    shutil.unpack_archive(tmp_path / f"out/terrace-{__version__}.tar.gz", tmp_path, filter="data")
    root = tmp_path / f"terrace-{__version__}"
    assert (root / "examples/new.yaml").is_file()
    assert not (root / "dist").exists()


@pytest.mark.parametrize(
    ("file", "old"),
    [
        ("pyproject.toml", f'version = "{__version__}"'),
        ("charts/terrace/Chart.yaml", f'appVersion: "{__version__}"'),
        ("CHANGELOG.md", f"## [{__version__}] - "),
    ],
)
def test_two_versions_in_one_tree_are_refused_by_place(
    clone: Repository, tmp_path: Path, file: str, old: str
) -> None:
    clone.replace(file, old, old.replace(__version__, OTHER))
    clone.commit()
    said = refusal(clone, tmp_path / "out")
    assert file in said
    assert OTHER in said
    assert __version__ in said


def test_a_folder_without_git_is_refused(clone: Repository, tmp_path: Path) -> None:
    shutil.rmtree(clone.folder / ".git")
    assert "is no git checkout" in refusal(clone, tmp_path / "out")


def test_images_that_were_asked_for_must_be_there(clone: Repository, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    said = refusal(clone, tmp_path / "out", "--images", "yes", "--image-archives", str(nothing))
    assert f"{nothing}/operator.tar" in said


def test_a_program_that_says_another_version_leaves_the_release_before(
    clone: Repository, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "SHA256SUMS").write_text("the one before\n")
    clone.replace("operator/terrace/__init__.py", __version__, OTHER)
    clone.commit()
    done = clone.release(folder)
    assert done.returncode == 1
    assert f"`terrace --version` says 'terrace {OTHER}'" in done.stderr
    assert [path.read_text() for path in folder.iterdir()] == ["the one before\n"]
    assert not list(tmp_path.glob("*partial*"))
