"""What a build with a device adds to the flags of a CPU build.

Owns: the accelerators by name, their CMake flags and what this machine lacks for them. Does not
own: ggml's CPU flags (``toolchain.py``) or building (``wheel.py``). Flags are those of llama.cpp's
own images; ``docs/images.md`` names the base images that bring the compilers. Next: the Dockerfile
builds with ``--accelerator ACCEL``, and ``tests/device`` runs the runtime on ``vulkan``.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from build.workshop import BuildError

_SHIM = Path(__file__).with_name("vulkan_headers.h")


@dataclass(frozen=True)
class Accelerator:
    """One kind of device that ggml can be built for."""

    name: str
    flags: tuple[str, ...] = ()
    """CMake definitions beside those of the CPU."""
    programs: tuple[str, ...] = ()
    """What must be on the path."""
    variables: tuple[str, ...] = ()
    """What must be in the environment."""
    advice: str = ""
    """Where they come from."""
    target: str = ""
    """The flag that takes a list of device generations from the environment: ``VARIABLE=FLAG``."""
    includes: tuple[Path, ...] = ()
    """Headers that come before every C++ file."""

    @property
    def identity(self) -> tuple[str, ...]:
        """Stands for it in the cache's key: no path of this checkout, but what lies there."""
        shims = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in self.includes]
        return (*self.flags, *(f"shim={shim}" for shim in shims))


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("cpu"),
        Accelerator(
            "cuda",
            # Without ALL_QUANTS, only pairs of equal KV types run fused on the device.
            flags=("GGML_CUDA=ON", "GGML_CUDA_FA_ALL_QUANTS=ON"),
            programs=("nvcc",),
            advice="build on an image such as nvidia/cuda:VERSION-devel",
            target="CUDA_ARCHITECTURES=CMAKE_CUDA_ARCHITECTURES",
        ),
        Accelerator(
            "rocm",
            flags=("GGML_HIP=ON",),
            programs=("hipcc",),
            advice="build on an image such as rocm/dev-ubuntu:VERSION-complete",
            target="AMDGPU_TARGETS=AMDGPU_TARGETS",
        ),
        Accelerator(
            "vulkan",
            flags=("GGML_VULKAN=ON",),
            programs=("glslc",),
            advice=(
                "Debian, Ubuntu: apt-get install glslc libvulkan-dev spirv-headers; "
                "to run it without a GPU also mesa-vulkan-drivers."
            ),
            includes=(_SHIM,),
        ),
        Accelerator(
            "sycl",
            flags=(
                "GGML_SYCL=ON",
                "GGML_SYCL_F16=ON",
                "CMAKE_C_COMPILER=icx",
                "CMAKE_CXX_COMPILER=icpx",
            ),
            programs=("icx", "icpx"),
            advice="build on an image such as intel/oneapi-toolkit:VERSION-devel",
        ),
        Accelerator(
            "cann",
            flags=("GGML_CANN=ON",),
            variables=("ASCEND_TOOLKIT_HOME",),
            advice="build on an image such as ascend/cann:VERSION-CHIP, its set_env.sh sourced",
            target="SOC_TYPE=SOC_TYPE",
        ),
        Accelerator(
            "musa",
            flags=("GGML_MUSA=ON",),
            programs=("mcc",),
            advice="build on an image such as mthreads/musa:VERSION-devel",
            target="MUSA_ARCHITECTURES=MUSA_ARCHITECTURES",
        ),
        Accelerator(
            "openvino",
            flags=("GGML_OPENVINO=ON",),
            variables=("OpenVINO_DIR",),
            advice="build where OpenVINO's setupvars.sh was sourced",
        ),
    )
}


def find_accelerator(name: str) -> Accelerator:
    """The accelerator ``name``, one of ACCELERATORS. Raises BuildError with what is missing."""
    found = ACCELERATORS[name]
    missing = [program for program in found.programs if shutil.which(program) is None]
    if name == "vulkan" and not Path("/usr/include/vulkan/vulkan.hpp").exists():
        missing.append("vulkan/vulkan.hpp")
    missing += [f"${variable}" for variable in found.variables if not os.environ.get(variable)]
    if missing:
        raise BuildError(f"a build for {name} needs {', '.join(missing)}. {found.advice}")
    variable, _, flag = found.target.partition("=")
    wanted = os.environ.get(variable, "") if variable else ""
    if not wanted:
        return found
    return replace(found, flags=(*found.flags, f"{flag}={wanted}"))


def include_flags(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """The CMake definition that includes ``paths`` before every C++ file; none without paths."""
    if not paths:
        return ()
    return (f"CMAKE_CXX_FLAGS={' '.join(f'-include {shlex.quote(str(path))}' for path in paths)}",)
