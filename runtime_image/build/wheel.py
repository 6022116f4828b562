"""Makes the llama-cpp-python wheel of this machine once, and finds it again afterwards.

Owns: the command line, the wheel's own CMake flags and the check that the wheel works. Does not
own: ggml's flags (``toolchain.py``, ``accelerator.py``), the source (``source.py``), cache and
progress (``workshop.py``), installing (the Makefile). Usage: ``python
runtime_image/build/wheel.py``; prints the wheel's path on stdout and its progress on stderr.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# A script's own folder is on the path, its parent is not; and this runs before we are installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from build.accelerator import ACCELERATORS, find_accelerator, include_flags
from build.slim import slim_wheel
from build.source import (
    REPOSITORY,
    fetch_sdist,
    index_environment,
    locked_sdist,
    pip_command,
)
from build.toolchain import (
    cache_key,
    cpu_identity,
    dispatch_flags,
    find_toolchain,
    ggml_flags,
    native_flags,
    usable_cpus,
)
from build.workshop import BuildError, Workshop, cache_root, cached, say

if TYPE_CHECKING:
    from collections.abc import Sequence

OVERRIDE = "TERRACE_LLAMA_WHEEL"
AMX_SHIM = Path(__file__).with_name("amx_tile_config.h")
DEMO_MODEL = REPOSITORY / "runtime_image/terrace_runtime/demo/chat.gguf"
CHECK_TIMEOUT_S = 120
_WHEEL_FLAGS = (
    "LLAVA_BUILD=ON",
    "MTMD_VIDEO=OFF",
    "LLAMA_OPENSSL=OFF",
    "LLAMA_CURL=OFF",
    "CMAKE_BUILD_TYPE=Release",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the path of a wheel that works here; exit 1 with one message when there is none."""
    signal.signal(signal.SIGTERM, _terminate)
    options = wheel_parser().parse_args(arguments)
    try:
        print(build_wheel(options))
    except BuildError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror}: {error.filename}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing half-made is left")


def wheel_parser() -> argparse.ArgumentParser:
    """The options that a wheel is chosen by."""
    parser = argparse.ArgumentParser(
        prog="wheel.py",
        description="Build (once) the llama-cpp-python wheel that uv.lock pins, with flags that "
        "run on any x86-64-v3 CPU, and print its path.",
        epilog=f"{OVERRIDE}=PATH uses that wheel instead. The cache is $XDG_CACHE_HOME/terrace, "
        "by default ~/.cache/terrace. A build takes about 4 minutes on two cores.",
    )
    parser.add_argument("--lock", type=Path, default=REPOSITORY / "uv.lock", metavar="FILE")
    parser.add_argument(
        "--model",
        type=Path,
        default=DEMO_MODEL,
        metavar="GGUF",
        help="small model that the finished wheel must decode a batch of",
    )
    parser.add_argument(
        "--accelerator",
        choices=sorted(ACCELERATORS),
        default="cpu",
        help="device that the build is for beside the CPU (default: none); each has its own wheel",
    )
    parser.add_argument(
        "--dispatch",
        action="store_true",
        help="kernels for every CPU, AVX512 and AMX included, chosen at start (for images; adds "
        "about five minutes of two cores)",
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="kernels for the CPU of this machine alone: what benchmarks hold --dispatch against",
    )
    parser.add_argument(
        "--print-path",
        action="store_true",
        help="print where the wheel is and build nothing; exit 1 when it is absent",
    )
    return parser


def build_wheel(options: argparse.Namespace) -> Path:
    """The wheel that ``options`` ask for, built unless it is there. Raises BuildError."""
    override = os.environ.get(OVERRIDE)
    is_special = options.dispatch or options.native
    if override and options.accelerator == "cpu" and not is_special:
        return _overriding_wheel(Path(override), options)
    sdist = locked_sdist(options.lock)
    machine = find_toolchain()
    accelerator = find_accelerator(options.accelerator)
    if is_special:
        accelerator = replace(accelerator, includes=(*accelerator.includes, AMX_SHIM))
    base = (*_cpu_flags(options, machine.machine), *_WHEEL_FLAGS)
    flags = (*base, *accelerator.flags, *include_flags(accelerator.includes))
    identity = (*accelerator.identity, *([cpu_identity()] if options.native else []))
    entry = cache_root() / "wheels" / cache_key(sdist, (*base, *identity), machine)
    if options.print_path and not entry.is_dir():
        raise BuildError(f"not built yet; it will be in {entry}")

    def make(workshop: Workshop, folder: Path) -> None:
        archive = fetch_sdist(sdist, cache_root())
        say(f"building {archive.name} with {machine.compiler}, flags: {' '.join(flags)}")
        _build(workshop, archive, folder, flags)
        if options.dispatch:
            slim_wheel(_only_wheel(folder))
        check_wheel(_only_wheel(folder), options.model)

    return _only_wheel(cached(entry, make))


def _cpu_flags(options: argparse.Namespace, machine: str) -> tuple[str, ...]:
    if options.native:
        return native_flags()
    return dispatch_flags() if options.dispatch else ggml_flags(machine)


def _build(workshop: Workshop, archive: Path, folder: Path, flags: Sequence[str]) -> None:
    # pip would keep the wheel in a cache of its own that knows nothing of our flags.
    options = ("--verbose", "--no-deps", "--no-cache-dir", "--wheel-dir", str(folder))
    environment = {
        **index_environment(),
        "CMAKE_ARGS": shlex.join(f"-D{flag}" for flag in flags),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(usable_cpus()),
    }
    workshop.run([*pip_command(), "wheel", *options, str(archive)], "llama.cpp", environment)


def _overriding_wheel(path: Path, options: argparse.Namespace) -> Path:
    if path.suffix != ".whl" or not path.is_file():
        raise BuildError(f"{OVERRIDE}={path} is not a wheel file")
    if not options.print_path:
        check_wheel(path, options.model)
    return path.resolve()


def _only_wheel(folder: Path) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise BuildError(f"{folder} holds {len(wheels)} wheels, not one: remove it")
    return wheels[0]


def check_wheel(wheel: Path, model: Path) -> None:
    """Let a child decode one batch with ``wheel``. Raises BuildError when it cannot."""
    with tempfile.TemporaryDirectory(prefix="terrace-wheel-") as site:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [n for n in archive.namelist() if n.startswith("llama_cpp/")])
        script = Path(__file__).with_name("check.py")
        try:
            done = subprocess.run(  # noqa: S603 - our own script and our own Python
                [sys.executable, str(script), site, str(model)],
                capture_output=True,
                text=True,
                timeout=CHECK_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BuildError(
                f"{wheel.name} did not decode a batch within {CHECK_TIMEOUT_S} s"
            ) from None
    if done.returncode != 0:
        raise BuildError(f"{wheel.name} does not work here: {_reason(done)}")
    say(f"{wheel.name} decodes: {done.stdout.strip()}")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if "ModuleNotFoundError" in last:
        return f"{last} (run it with the project's Python, as `make init` does)"
    if done.returncode >= 0:
        return last
    name = signal.Signals(-done.returncode).name
    hint = " (an instruction that this CPU lacks)" if name == "SIGILL" else ""
    return f"decoding one batch ended with {name}{hint}"


def _terminate(*_: object) -> NoReturn:
    # As an exception, so that the build's children are ended and its folder is removed.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
