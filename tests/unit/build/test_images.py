"""What the images are made from: accelerators, a wheel made small, lists of parts."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from build.accelerator import ACCELERATORS, find_accelerator, include_flags
from build.sbom import sbom_text
from build.slim import slim_wheel
from build.toolchain import dispatch_flags
from build.workshop import BuildError

DOCS = Path(__file__).parents[3] / "docs/images.md"
DISTRIBUTION = "llama_cpp_python-0.3.36.dist-info"
KERNELS = ("bin/libggml-cpu-haswell.so", "bin/libggml-cpu-sapphirerapids.so", "bin/libggml-cuda.so")
KEPT = (
    "llama_cpp/__init__.py",
    "llama_cpp/lib/libllama.so",
    "llama_cpp/lib/libggml.so",
    "llama_cpp/lib/libggml.so.0",
    "llama_cpp/lib/libggml-base.so.0",
    "llama_cpp/lib/libmtmd.so",
    f"{DISTRIBUTION}/METADATA",
)
DROPPED = (
    "lib/libllama.so",
    "lib/cmake/ggml/ggml-config.cmake",
    "include/ggml.h",
    "bin/convert_hf_to_gguf.py",
    "llama_cpp/lib/libllama.so.0",
    "llama_cpp/lib/libllama.so.0.5.0",
    "llama_cpp/lib/libmtmd.so.0",
    "llama_cpp/lib/libggml-base.so",
    "llama_cpp/lib/libggml-base.so.0.25.3",
)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with the files of a build with run-time dispatch."""
    path = tmp_path / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*KERNELS, *KEPT[:-1], *DROPPED):
            archive.writestr(name, f"content of {name}")
        archive.writestr(
            f"{DISTRIBUTION}/METADATA",
            "Metadata-Version: 2.4\nName: llama_cpp_python\nVersion: 0.3.36\n"
            "License-Expression: MIT\n\nText.\n",
        )
        archive.writestr(f"{DISTRIBUTION}/RECORD", "stale,,\n")
    return path


def test_a_small_wheel_has_each_library_once_and_the_kernels_beside_it(wheel: Path) -> None:
    slim_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        kernels = {f"llama_cpp/lib/{Path(name).name}" for name in KERNELS}
        assert names == {*KEPT, *kernels, f"{DISTRIBUTION}/RECORD"}
        content = archive.read("llama_cpp/lib/libggml-cpu-haswell.so")
    assert content == b"content of bin/libggml-cpu-haswell.so"


def test_a_library_of_the_system_goes_beside_them_also_into_a_wheel_that_is_small_already(
    wheel: Path, tmp_path: Path
) -> None:
    slim_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        before = set(archive.namelist())
    (tmp_path / "libgomp.so.1").write_bytes(b"threads")
    slim_wheel(wheel, [tmp_path / "libgomp.so.1"])
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == before | {"llama_cpp/lib/libgomp.so.1"}
        assert archive.read("llama_cpp/lib/libgomp.so.1") == b"threads"


def test_its_record_holds_the_checksum_of_every_file(wheel: Path) -> None:
    slim_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        rows = list(csv.reader(archive.read(f"{DISTRIBUTION}/RECORD").decode().splitlines()))
        assert {row[0] for row in rows} == set(archive.namelist())
        for name, digest, size in rows:
            content = archive.read(name)
            wanted = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            if not name.endswith("RECORD"):
                assert (digest, int(size)) == (f"sha256={wanted}", len(content))


def test_the_same_build_gives_the_same_bytes(wheel: Path) -> None:
    content = wheel.read_bytes()
    slim_wheel(wheel)
    once = wheel.read_bytes()
    wheel.write_bytes(content)
    slim_wheel(wheel)
    assert wheel.read_bytes() == once


def test_the_list_of_parts_names_each_with_checksum_and_licence(wheel: Path) -> None:
    document = json.loads(sbom_text("runtime", [wheel]))
    assert document["metadata"]["component"]["name"] == "terrace-runtime"
    assert document["components"] == [
        {
            "type": "library",
            "name": "llama_cpp_python",
            "version": "0.3.36",
            "purl": "pkg:pypi/llama-cpp-python@0.3.36",
            "hashes": [
                {"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}
            ],
            "licenses": [{"expression": "MIT"}],
        }
    ]


@pytest.mark.parametrize("name", sorted(ACCELERATORS))
def test_the_page_about_images_names_the_flags_of_each_accelerator(name: str) -> None:
    row = next(row for row in DOCS.read_text().splitlines() if row.startswith(f"| `{name}` |"))
    assert row.split("|")[2].strip().strip("`") == " ".join(ACCELERATORS[name].flags)


def test_a_device_build_without_its_compiler_says_what_is_missing_and_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"a build for cuda needs nvcc\. build on an image such"):
        find_accelerator("cuda")


def test_generations_of_a_device_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_ARCHITECTURES", "90")
    assert "CMAKE_CUDA_ARCHITECTURES=90" in find_accelerator("cuda").flags


def test_kernels_for_every_cpu_are_libraries_and_never_of_this_machine() -> None:
    flags = dispatch_flags()
    assert {"GGML_NATIVE=OFF", "GGML_BACKEND_DL=ON", "GGML_CPU_ALL_VARIANTS=ON"} <= set(flags)


def test_headers_come_before_every_file_also_from_a_folder_with_a_space(tmp_path: Path) -> None:
    path = tmp_path / "a b.h"
    assert include_flags((path,)) == (f"CMAKE_CXX_FLAGS=-include '{path}'",)
    assert include_flags(()) == ()
