"""What decides the bytes of a native build: the CPU's flags, the compiler, the C library.

Owns: ggml's CMake flags per machine, looking this machine over, the cache key. Does not own:
building. Next: ``wheel.py`` and ``tests/bench/peer.py`` compile with these flags, so that the two
sides of a benchmark run the same kernels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from build.workshop import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from build.source import Sdist

_X86_FLAGS = tuple(
    f"GGML_{name}={value}"
    for names, value in (
        (("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C"), "ON"),
        (("AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"), "OFF"),
        (("AMX_TILE", "AMX_INT8", "AMX_BF16"), "OFF"),
    )
    for name in names
)
_ARM_FLAGS = ("GGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16",)
_REQUIRED_CPU = {
    "x86_64": ("avx2", "bmi2", "f16c", "fma"),
    "aarch64": ("asimddp", "asimdhp"),
}


@dataclass(frozen=True)
class Toolchain:
    """What of this machine decides the bytes that a compiler writes."""

    machine: str
    compiler: str
    """Name and major version, e.g. ``gcc-12``."""
    libc: str
    environment: tuple[str, ...]
    """NAME=value of the variables that compilers and CMake read."""


def ggml_flags(machine: str) -> tuple[str, ...]:
    """CMake definitions of a CPU build that runs on every server CPU of ``machine``.

    x86-64 means the level x86-64-v3 (Intel since 2013, AMD since 2015). Nothing beyond it: gcc 12
    miscompiles ggml's AMX tile set-up, which kills the process on Sapphire Rapids and newer.
    """
    match machine:
        case "x86_64" | "amd64":
            special = _X86_FLAGS
        case "aarch64" | "arm64":
            special = _ARM_FLAGS
        case _:
            special = ()
    return ("GGML_NATIVE=OFF", "GGML_OPENMP=ON", "GGML_LLAMAFILE=ON", *special)


def dispatch_flags() -> tuple[str, ...]:
    """CMake definitions of a build with kernels for every CPU, chosen when it starts.

    Kernels are libraries of their own, so this build only works after
    ``ggml_backend_load_all_from_path`` (``terrace_runtime/backend/dispatch.py``).
    """
    return (
        "GGML_NATIVE=OFF",
        "GGML_OPENMP=ON",
        "GGML_LLAMAFILE=ON",
        "GGML_BACKEND_DL=ON",
        "GGML_CPU_ALL_VARIANTS=ON",
    )


def native_flags() -> tuple[str, ...]:
    """CMake definitions of a build for the CPU of this machine alone."""
    return ("GGML_NATIVE=ON", "GGML_OPENMP=ON", "GGML_LLAMAFILE=ON")


def cpu_identity() -> str:
    """Stands for this machine's CPU in the key of a build for it alone."""
    features = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    text = " ".join(sorted(features[1].split())) if features else platform.processor()
    return f"cpu={hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _cpuinfo() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return ""


def missing_cpu_features(machine: str, cpuinfo: str) -> tuple[str, ...]:
    """Features that ``ggml_flags`` needs and ``cpuinfo`` (/proc/cpuinfo) does not list."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if found is None:
        return ()
    return tuple(f for f in _REQUIRED_CPU.get(machine, ()) if f not in found[1].split())


def find_toolchain(environment: Mapping[str, str] = os.environ) -> Toolchain:
    """Look this machine over. Raises BuildError when it cannot compile or run what we build."""
    machine = platform.machine().lower()
    with contextlib.suppress(OSError):
        missing = missing_cpu_features(machine, Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if missing:
            raise BuildError(
                f"this CPU lacks {', '.join(missing)}; Terrace needs x86-64-v3 (Intel Haswell, AMD "
                "Excavator or newer) or armv8.2 with dotprod. Set TERRACE_LLAMA_WHEEL to a wheel "
                "that you built for it."
            )
    command = environment.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    banner = _output([*command.split(), "--version"]) if command else ""
    if not banner:
        raise BuildError(
            f"no C++ compiler found{f' ({command} does not run)' if command else ''}. Install one "
            "(Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++) or set CXX."
        )
    family = "clang" if "clang" in banner.lower() else "gcc"
    major = _output([*command.split(), "-dumpversion"]).split(".")[0]
    names = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE")
    return Toolchain(
        machine=machine,
        compiler=f"{family}-{major.strip()}",
        libc="-".join(platform.libc_ver()),
        environment=tuple(f"{n}={environment[n]}" for n in names if environment.get(n)),
    )


def cache_key(sdist: Sdist, flags: Sequence[str], toolchain: Toolchain) -> str:
    """Short digest of everything that decides the bytes of a build."""
    parts = [sdist.sha256, sorted(flags), toolchain.machine, toolchain.compiler, toolchain.libc]
    text = json.dumps([*parts, toolchain.environment])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _output(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603 - a compiler the user chose
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
