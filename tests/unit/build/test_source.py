"""What is read from uv.lock, and which pip fetches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from build.source import REPOSITORY, Sdist, index_environment, locked_sdist
from build.workshop import BuildError

if TYPE_CHECKING:
    from pathlib import Path

_LOCK = """
version = 1
[[package]]
name = "llama-cpp-python"
version = "0.3.36"
sdist = {{ url = "https://example.org/a/llama_cpp_python-0.3.36.tar.gz", hash = "{pin}" }}
"""


def _lock(folder: Path, text: str) -> Path:
    path = folder / "uv.lock"
    path.write_text(text)
    return path


def test_the_projects_own_lock_pins_the_sdist_that_pyproject_asks_for() -> None:
    sdist = locked_sdist(REPOSITORY / "uv.lock")
    wanted = f'"{sdist.name}=={sdist.version}"'
    assert wanted in (REPOSITORY / "pyproject.toml").read_text()
    assert len(bytes.fromhex(sdist.sha256)) == 32


def test_name_version_checksum_and_file_come_from_the_lock(tmp_path: Path) -> None:
    lock = _lock(tmp_path, _LOCK.format(pin="sha256:" + "ab" * 32))
    expected = Sdist("llama-cpp-python", "0.3.36", "ab" * 32, "llama_cpp_python-0.3.36.tar.gz")
    assert locked_sdist(lock) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_LOCK.format(pin="md5:abcd"), "no sha256"),
        ("version = 1\npackage = []", "pins no sdist of llama-cpp-python: run uv lock"),
        ("version = [", "cannot read"),
    ],
)
def test_a_lock_that_pins_nothing_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        locked_sdist(_lock(tmp_path, text))


def test_a_missing_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot read .*nothing\.lock"):
        locked_sdist(tmp_path / "nothing.lock")


def test_pip_uses_the_index_that_the_user_named_for_uv() -> None:
    assert index_environment({"UV_DEFAULT_INDEX": "u"})["PIP_INDEX_URL"] == "u"


def test_an_index_named_for_pip_wins() -> None:
    both = {"UV_DEFAULT_INDEX": "u", "PIP_INDEX_URL": "p"}
    assert index_environment(both)["PIP_INDEX_URL"] == "p"


def test_no_index_is_named_where_the_user_named_none() -> None:
    assert "PIP_INDEX_URL" not in index_environment({"HOME": "h"})
