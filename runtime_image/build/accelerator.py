"""What a build with a device adds to the flags of a CPU build.

Owns: the accelerators by name, their CMake flags and what this machine lacks for them. Does not
own: ggml's CPU flags (``toolchain.py``) or building (``wheel.py``). Next: ``tests/device`` runs the
runtime on the ``vulkan`` build, whose device may be Mesa's software one.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from build.workshop import BuildError

_SHIM = Path(__file__).with_name("vulkan_headers.h")
_VULKAN_NEEDS = (
    "Debian, Ubuntu: apt-get install glslc libvulkan-dev spirv-headers; "
    "to run it without a GPU also mesa-vulkan-drivers."
)


@dataclass(frozen=True)
class Accelerator:
    """One kind of device that ggml can be built for."""

    name: str
    flags: tuple[str, ...] = ()
    """CMake definitions beside those of the CPU."""
    identity: tuple[str, ...] = ()
    """Stands for ``flags`` in the cache's key: no path of this checkout, but what lies there."""


def find_accelerator(name: str) -> Accelerator:
    """The accelerator ``name``: ``cpu`` or ``vulkan``. Raises BuildError with what is missing."""
    if name == "cpu":
        return Accelerator(name)
    assert name == "vulkan", "the command line offers no other"
    missing = [program for program in ("glslc",) if shutil.which(program) is None]
    if not Path("/usr/include/vulkan/vulkan.hpp").exists():
        missing.append("vulkan/vulkan.hpp")
    if missing:
        raise BuildError(f"a Vulkan build needs {', '.join(missing)}. {_VULKAN_NEEDS}")
    shim = hashlib.sha256(_SHIM.read_bytes()).hexdigest()[:16]
    return Accelerator(
        name,
        flags=("GGML_VULKAN=ON", f"CMAKE_CXX_FLAGS=-include {_SHIM}"),
        identity=("GGML_VULKAN=ON", f"shim={shim}"),
    )
