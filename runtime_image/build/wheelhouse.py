"""Collects all that the images install: locked wheels, our own, llama.cpp's, and lists of parts.

Owns: the folder that the Dockerfile copies: one flat folder of wheels, and for each image a
requirements file in which every wheel has its checksum, and a CycloneDX list. Does not own:
building llama.cpp (``wheel.py``), images (the Dockerfile). An image build needs no package index
then, and one lock gives the same bytes. The wheels are for the Python that runs this; the base
image must have the same X.Y. Usage: ``python runtime_image/build/wheelhouse.py DIR``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder is on the path, its parent is not; and this runs before we are installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from build.accelerator import ACCELERATORS
from build.sbom import sbom_text
from build.slim import slim_wheel
from build.source import PACKAGE, REPOSITORY, index_environment, pip_command
from build.wheel import build_wheel, wheel_parser
from build.workshop import BuildError, Workshop, cached, say

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGES = ("operator", "gateway", "runtime")
_EPOCH = "315532800"
"""1980-01-01, the oldest date that a zip file can hold: our own wheel is the same every time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the folder; exit 1 with one message when that cannot be."""
    parser = argparse.ArgumentParser(prog="wheelhouse.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="made anew, usually dist/wheelhouse")
    parser.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu")
    options = parser.parse_args(arguments)
    try:
        make_wheelhouse(options.folder, options.accelerator)
    except BuildError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the folder is as it was")


def make_wheelhouse(folder: Path, accelerator: str) -> None:
    """Make ``folder`` anew. Raises BuildError, and then leaves none."""

    def make(workshop: Workshop, staging: Path) -> None:
        ours = _our_wheels(workshop, staging, accelerator)
        for image in IMAGES:
            locked = _download(workshop, _locked(workshop, image), staging)
            extra = [wheel for wheel in ours if image == "runtime" or wheel.name.startswith("terr")]
            wheels = [*locked, *extra]
            lines = [f"./{w.name} --hash=sha256:{_digest(w)}\n" for w in sorted(wheels)]
            (staging / f"{image}.txt").write_text("".join(lines))
            (staging / f"{image}.cdx.json").write_text(sbom_text(image, wheels))

    shutil.rmtree(folder, ignore_errors=True)
    cached(folder, make)
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    say(f"{folder}: {len(wheels)} wheels, {size / 1e6:.0f} MB")


def _our_wheels(workshop: Workshop, folder: Path, accelerator: str) -> list[Path]:
    """The project's own wheel, and llama.cpp's with kernels for every CPU."""
    environment = {**index_environment(), "SOURCE_DATE_EPOCH": _EPOCH}
    build = [_uv(), "build", "--wheel", "--out-dir", str(folder), str(REPOSITORY)]
    workshop.run(build, "our own wheel", environment)
    (own,) = folder.glob("terrace-*.whl")
    options = wheel_parser().parse_args(["--dispatch", "--accelerator", accelerator])
    llama = Path(shutil.copy(build_wheel(options), folder))
    slim_wheel(llama, [_openmp()])
    return [own, llama]


def _openmp() -> Path:
    """The compiler's OpenMP library, which base images do not have. Raises BuildError."""
    compiler = [*os.environ.get("CXX", "c++").split(), "-print-file-name=libgomp.so.1"]
    try:
        done = subprocess.run(compiler, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603 - a compiler the user chose
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler[0]} does not tell where libgomp.so.1 is: {error}") from error
    path = Path(done.stdout.strip())
    if not path.is_file():
        raise BuildError(
            "the compiler has no libgomp.so.1. Debian, Ubuntu: apt-get install libgomp1"
        )
    return path


def _locked(workshop: Workshop, image: str) -> Path:
    """A requirements file of what uv.lock pins for ``image``, with checksums."""
    pins = workshop.staging / f"{image}.txt"
    options = ["--frozen", "--no-dev", "--no-emit-project", "--no-emit-package", PACKAGE]
    argv = [_uv(), "export", "--quiet", *options, "--no-annotate", "--no-header"]
    argv += ["--extra", image, "--output-file", str(pins)]
    workshop.run([*argv, "--project", str(REPOSITORY)], f"reading uv.lock for {image}")
    return pins


def _download(workshop: Workshop, pins: Path, folder: Path) -> list[Path]:
    """The wheels of ``pins`` for this Python and machine, in ``folder``."""
    own = pins.with_suffix("")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(own)]
    argv = [*pip_command(), "download", *options, "--requirement", str(pins)]
    workshop.run(argv, f"fetching the wheels of {pins.stem}", index_environment())
    return [wheel.replace(folder / wheel.name) for wheel in own.iterdir()]


def _digest(wheel: Path) -> str:
    with wheel.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv") or shutil.which(REPOSITORY / ".uv/bin/uv")
    if not found:
        raise BuildError("there is no uv: run `make init`")
    return str(found)


if __name__ == "__main__":
    main()
