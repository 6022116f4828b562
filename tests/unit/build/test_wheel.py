"""The command that finds or makes the wheel: what it prints and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build import wheel
from build.source import REPOSITORY
from build.workshop import BuildError

_SCRIPT = REPOSITORY / "runtime_image/build/wheel.py"


def _run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _wheel_of(folder: Path, code: str) -> Path:
    """A wheel whose llama_cpp is ``code``."""
    path = folder / "llama_cpp_python-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llama_cpp/__init__.py", code)
    return path


def test_help_names_the_override_and_the_cache(tmp_path: Path) -> None:
    done = _run(tmp_path, "--help")
    assert done.returncode == 0
    assert "TERRACE_LLAMA_WHEEL=PATH" in done.stdout
    assert "XDG_CACHE_HOME" in done.stdout


def test_print_path_builds_nothing_and_says_where_the_wheel_will_be(tmp_path: Path) -> None:
    done = _run(tmp_path, "--print-path", TERRACE_LLAMA_WHEEL="")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"not built yet; it will be in {tmp_path}/cache/terrace/wheels/" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_print_path_finds_what_was_built(tmp_path: Path) -> None:
    entry = _run(tmp_path, "--print-path", TERRACE_LLAMA_WHEEL="").stderr.split()[-1]
    Path(entry).mkdir(parents=True)
    built = _wheel_of(Path(entry), "")
    done = _run(tmp_path, "--print-path", TERRACE_LLAMA_WHEEL="")
    assert (done.returncode, done.stdout) == (0, f"{built}\n")


def test_an_override_that_is_no_wheel_is_refused_by_name(tmp_path: Path) -> None:
    done = _run(tmp_path, TERRACE_LLAMA_WHEEL="/nothing.whl")
    assert done.returncode == 1
    assert done.stderr == "error: TERRACE_LLAMA_WHEEL=/nothing.whl is not a wheel file\n"


def test_a_machine_without_a_compiler_gets_one_line(tmp_path: Path) -> None:
    done = _run(tmp_path, TERRACE_LLAMA_WHEEL="", CXX="/nothing/c++")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no C++ compiler found (/nothing/c++ does not run)")
    assert done.stderr.count("\n") == 1


def test_a_lock_that_is_missing_gets_one_line(tmp_path: Path) -> None:
    done = _run(tmp_path, "--lock", "none.lock", TERRACE_LLAMA_WHEEL="")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read none.lock")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL .an instruction that"),
        ("import os; os.abort()", "decoding one batch ended with SIGABRT"),
        ("import nothing_like_it", "No module named .*run it with the project's Python"),
        ("llama_backend_init = None", "TypeError"),
    ],
)
def test_a_wheel_that_dies_of_one_batch_is_an_error_message(
    tmp_path: Path, code: str, message: str
) -> None:
    with pytest.raises(BuildError, match=f"does not work here: .*{message}"):
        wheel.check_wheel(_wheel_of(tmp_path, code), wheel.DEMO_MODEL)


def test_the_installed_llama_cpp_decodes_a_batch_of_the_demo_model() -> None:
    site = Path(wheel.__file__).parent  # holds no llama_cpp: the environment's own is found
    done = subprocess.run(
        [sys.executable, site / "check.py", str(site), str(wheel.DEMO_MODEL)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CPU" in done.stdout


def test_a_file_that_is_no_model_is_named_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    done = subprocess.run(
        [sys.executable, _SCRIPT.with_name("check.py"), str(tmp_path), str(tmp_path / "bad.gguf")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"llama.cpp cannot load {tmp_path}/bad.gguf")


def test_each_accelerator_has_its_own_wheel(tmp_path: Path) -> None:
    plain = _run(tmp_path, "--print-path", TERRACE_LLAMA_WHEEL="")
    device = _run(tmp_path, "--print-path", "--accelerator", "vulkan", TERRACE_LLAMA_WHEEL="")
    needs = "a Vulkan build needs" in device.stderr
    assert needs or device.stderr.split()[-1] != plain.stderr.split()[-1]


def test_a_vulkan_build_without_its_tools_names_the_packages(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        "--print-path",
        "--accelerator",
        "vulkan",
        TERRACE_LLAMA_WHEEL="",
        PATH=_only_compilers(tmp_path),
    )
    assert done.returncode == 1
    assert "error: a build for vulkan needs glslc" in done.stderr
    assert "apt-get install glslc libvulkan-dev spirv-headers" in done.stderr


def _only_compilers(folder: Path) -> str:
    """A PATH on which a C++ compiler is found and nothing else."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("c++", "g++"):
        found = shutil.which(name)
        if found:
            (programs / name).symlink_to(found)
    return str(programs)
