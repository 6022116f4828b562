"""Builds the program that we are measured against: llama.cpp's own llama-server.

Owns: building llama-server and llama-batched-bench, once, from the very sdist and with the very
ggml flags of the images' wheel, so that both sides of a benchmark run the kernels that users get.
Does not own: running them (``engine.py``), that wheel (``builds.py``). Usage: ``PYTHONPATH=tests
python -m bench.peer`` prints the folder of the programs; about 6 minutes on two cores the first
time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
from typing import TYPE_CHECKING

from build.accelerator import include_flags
from build.source import REPOSITORY, fetch_sdist, index_environment, locked_sdist, pip_command
from build.toolchain import cache_key, dispatch_flags, find_toolchain, usable_cpus
from build.wheel import AMX_SHIM
from build.workshop import BuildError, Workshop, cache_root, cached, say

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = ("llama-server", "llama-batched-bench")
_FLAGS = (
    "CMAKE_BUILD_TYPE=Release",
    # Shared, with paths that survive the move into the cache: our wheel's libraries are shared too.
    "BUILD_SHARED_LIBS=ON",
    "CMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "CMAKE_INSTALL_RPATH=$ORIGIN",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_CURL=OFF",
    "LLAMA_OPENSSL=OFF",
)


def peer_programs() -> Path:
    """Return the folder that holds PROGRAMS, built now when it is not cached."""
    sdist = locked_sdist(REPOSITORY / "uv.lock")
    machine = find_toolchain()
    identity = (*dispatch_flags(), *_FLAGS)
    flags = (*identity, *include_flags((AMX_SHIM,)))

    def make(workshop: Workshop, folder: Path) -> None:
        archive = fetch_sdist(sdist, cache_root())
        with tarfile.open(archive) as tar:
            tar.extractall(workshop.staging, filter="data")
        tree = workshop.staging / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
        say(f"building {', '.join(PROGRAMS)} with {machine.compiler}, flags: {' '.join(flags)}")
        environment = _with_build_tools(workshop)
        objects = workshop.staging / "objects"
        definitions = [f"-D{flag}" for flag in flags]
        workshop.run(
            ["cmake", "-G", "Ninja", "-S", str(tree), "-B", str(objects), *definitions],
            "configuring llama.cpp",
            environment,
        )
        jobs = ("--parallel", str(usable_cpus()))
        workshop.run(
            ["cmake", "--build", str(objects), *jobs, "--target", *PROGRAMS],
            "llama-server",
            environment,
        )
        libraries = [path.name for path in (objects / "bin").glob("lib*.so*")]
        for name in (*PROGRAMS, *libraries):
            shutil.copy2(objects / "bin" / name, folder / name, follow_symlinks=False)

    return cached(cache_root() / "peer" / cache_key(sdist, identity, machine), make)


def _with_build_tools(workshop: Workshop) -> dict[str, str]:
    """The environment in which cmake and ninja are found, fetched by pip where they are absent."""
    environment = index_environment()
    missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool)]
    if missing:
        tools = workshop.staging / "tools"
        options = ("--target", str(tools), *missing)
        workshop.run([*pip_command(), "install", *options], "fetching cmake, ninja", environment)
        environment["PATH"] = f"{tools / 'bin'}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = str(tools)
    return environment


def main() -> None:
    """Print the folder of the programs."""
    argparse.ArgumentParser(prog="peer.py", description=__doc__).parse_args()
    try:
        print(peer_programs())
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
