"""Which flags a build gets, and what tells two builds apart."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from build.source import Sdist
from build.toolchain import Toolchain, cache_key, find_toolchain, ggml_flags, missing_cpu_features
from build.workshop import BuildError

if TYPE_CHECKING:
    from pathlib import Path

SDIST = Sdist("llama-cpp-python", "0.3.36", "ab" * 32, "x.tar.gz")
HERE = Toolchain("x86_64", "gcc-12", "glibc-2.36", ())


def test_an_x86_build_asks_for_the_level_v3_and_nothing_beyond() -> None:
    flags = ggml_flags("x86_64")
    on = {flag.removesuffix("=ON") for flag in flags if flag.endswith("=ON")}
    assert {"GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2"} <= on
    assert not [name for name in on if re.search("AVX512|AMX|VNNI", name)]
    assert "GGML_NATIVE=OFF" in flags


def test_an_arm_build_has_no_x86_flag() -> None:
    flags = ggml_flags("aarch64")
    assert "GGML_NATIVE=OFF" in flags
    assert not [flag for flag in flags if re.search("SSE|AVX|AMX|FMA|F16C|BMI", flag)]


def test_an_unknown_machine_gets_the_compilers_baseline() -> None:
    assert set(ggml_flags("riscv64")) == {"GGML_NATIVE=OFF", "GGML_OPENMP=ON", "GGML_LLAMAFILE=ON"}


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, machine="aarch64"),
        replace(HERE, compiler="gcc-13"),
        replace(HERE, libc="glibc-2.40"),
        replace(HERE, environment=("CXXFLAGS=-O1",)),
    ],
)
def test_another_machine_or_compiler_is_another_entry(other: Toolchain) -> None:
    assert cache_key(SDIST, ["A=ON"], HERE) != cache_key(SDIST, ["A=ON"], other)


def test_another_source_or_flag_is_another_entry_and_the_order_of_flags_is_not() -> None:
    key = cache_key(SDIST, ["A=ON", "B=ON"], HERE)
    assert key == cache_key(SDIST, ["B=ON", "A=ON"], HERE)
    assert key != cache_key(SDIST, ["A=ON", "B=OFF"], HERE)
    assert key != cache_key(replace(SDIST, sha256="cd" * 32), ["A=ON", "B=ON"], HERE)


def test_features_that_the_cpu_lacks_are_named() -> None:
    cpuinfo = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2 fma bmi1\n"
    assert missing_cpu_features("x86_64", cpuinfo) == ("bmi2", "f16c")
    assert missing_cpu_features("x86_64", cpuinfo.replace("bmi1", "bmi2 f16c")) == ()


def test_a_cpu_that_tells_nothing_is_not_refused() -> None:
    assert missing_cpu_features("x86_64", "") == ()


def test_a_machine_without_a_compiler_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no C\+\+ compiler found .*apt-get install g\+\+"):
        find_toolchain({"CXX": str(tmp_path / "nothing")})


def test_this_machines_compiler_is_found_with_its_major_version() -> None:
    found = find_toolchain({**os.environ, "CXXFLAGS": "-O2"})
    assert re.fullmatch(r"(gcc|clang)-\d+", found.compiler)
    assert "CXXFLAGS=-O2" in found.environment
