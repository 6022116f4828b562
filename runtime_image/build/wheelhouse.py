"""Collects all that the images install: locked wheels, our own, llama.cpp's, and lists of parts.

Owns: the folder that the Dockerfile copies. ``locked/`` holds what uv.lock and the build scripts
decide: the wheels of others, llama.cpp's, pip to install them with, and for each image a
requirements file in which every wheel has its checksum. ``own/`` holds what every edit of ours
changes: our wheel and a CycloneDX list per image. Does not own: building llama.cpp (``wheel.py``),
images (the Dockerfile). An image build needs no package index then, and one lock gives the same
bytes. The wheels are for the Python that runs this; the base image must have the same X.Y.
Usage: ``python runtime_image/build/wheelhouse.py DIR``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# A script's own folder is on the path, its parent is not; and this runs before we are installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from build.accelerator import ACCELERATORS
from build.digests import digest_of, digest_of_file
from build.sbom import sbom_text
from build.slim import slim_wheel
from build.source import PACKAGE, REPOSITORY, index_environment, pip_command
from build.wheel import build_wheel, wheel_parser
from build.workshop import BuildError, Workshop, cache_root, cached, say

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGES = ("operator", "gateway", "runtime")
PIP = "pip==26.3 --hash=sha256:f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
"""Installs the wheels while an image is built, from its wheel; no image keeps it."""
OWN_SOURCES = ("operator/terrace", "runtime_image/terrace_runtime")
_OWN_FILES = ("pyproject.toml", "README.md", "LICENSE")
_EPOCH = "315532800"
"""1980-01-01, the oldest date that a zip file can hold: our own wheel is the same every time."""
_SCRIPTS = ("wheelhouse.py", "slim.py", "sbom.py")
"""What they do decides the folder's content too."""
_KEY = "key"
_NEEDED_BYTES = 512 * 1024**2


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the folder; exit 1 with one message when that cannot be."""
    signal.signal(signal.SIGTERM, _terminate)
    parser = argparse.ArgumentParser(prog="wheelhouse.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="made anew, usually dist/wheelhouse")
    parser.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu")
    options = parser.parse_args(arguments)
    try:
        make_wheelhouse(options.folder, options.accelerator)
    except BuildError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; no wheelhouse is left half-made")


def make_wheelhouse(folder: Path, accelerator: str) -> None:
    """Make ``folder`` anew unless it is what it would become. Raises BuildError."""
    llama = build_wheel(wheel_parser().parse_args(["--dispatch", "--accelerator", accelerator]))
    locked_key = _locked_key(llama)
    key = digest_of(locked_key, own_digest(REPOSITORY))
    if _read(folder / _KEY) == key:
        say(f"{folder}: nothing has changed")
        return
    locked = cached(
        cache_root() / "wheelhouse" / locked_key[:16], partial(_fill_locked, llama), _NEEDED_BYTES
    )

    def make(workshop: Workshop, staging: Path) -> None:
        shutil.copytree(locked, staging / "locked")
        _fill_own(workshop, staging / "own", staging / "locked")
        (staging / _KEY).write_text(key)

    cached(folder, make, _NEEDED_BYTES, lambda found: _read(found / _KEY) == key)
    wheels = list(folder.glob("*/*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    say(f"{folder}: {len(wheels)} wheels, {size / 1e6:.0f} MB")


def own_digest(repository: Path) -> str:
    """Stands for all that our own wheel is built from."""
    files = [repository / name for name in _OWN_FILES]
    for folder in OWN_SOURCES:
        files += [p for p in (repository / folder).rglob("*") if "__pycache__" not in p.parts]
    files = sorted(path for path in files if path.is_file())
    return digest_of(*(f"{p.relative_to(repository)} {digest_of_file(p)}" for p in files))


def _locked_key(llama: Path) -> str:
    scripts = [digest_of_file(Path(__file__).with_name(name)) for name in _SCRIPTS]
    python = f"{sys.version_info[:2]} {sysconfig.get_platform()}"
    lock = digest_of_file(REPOSITORY / "uv.lock")
    return digest_of(lock, python, digest_of_file(llama), PIP, *scripts)


def _fill_locked(llama: Path, workshop: Workshop, folder: Path) -> None:
    """What uv.lock decides: wheels, and a requirements file per image."""
    tool = workshop.staging / "pip.txt"
    tool.write_text(f"{PIP}\n")
    _download(workshop, tool, folder)
    ours = Path(shutil.copy(llama, folder))
    slim_wheel(ours, [_openmp()])
    for image in IMAGES:
        wheels = _download(workshop, _locked(workshop, image), folder)
        if image == "runtime":
            wheels.append(ours)
        lines = [f"./{w.name} --hash=sha256:{digest_of_file(w)}\n" for w in sorted(wheels)]
        (folder / f"{image}.txt").write_text("".join(lines))


def _fill_own(workshop: Workshop, folder: Path, locked: Path) -> None:
    """Our own wheel, and the list of all parts of each image."""
    folder.mkdir()
    environment = {**index_environment(), "SOURCE_DATE_EPOCH": _EPOCH}
    build = [_uv(), "build", "--wheel", "--out-dir", str(folder), str(REPOSITORY)]
    workshop.run(build, "our own wheel", environment)
    (folder / ".gitignore").unlink(missing_ok=True)
    (own,) = folder.glob("*.whl")
    (folder / "own.txt").write_text(f"./{own.name} --hash=sha256:{digest_of_file(own)}\n")
    for image in IMAGES:
        lines = (locked / f"{image}.txt").read_text().splitlines()
        wheels = [locked / line.split()[0] for line in lines]
        (folder / f"{image}.cdx.json").write_text(sbom_text(image, [*wheels, own]))


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


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv") or shutil.which(REPOSITORY / ".uv/bin/uv")
    if not found:
        raise BuildError("there is no uv: run `make init`")
    return str(found)


def _terminate(*_: object) -> NoReturn:
    # As an exception, so that the build's children are ended and its folder is removed.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
