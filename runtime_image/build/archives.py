"""Builds the three images without docker and without a registry, as OCI archives.

Owns: the command line, what has to be built again, calling buildah. Does not own: the base
(``base.py``), the wheels (``wheelhouse.py``), what an image holds (the Dockerfile), the archives'
form (``oci.py``). All state is in the cache; the folder of archives is whole or absent. Usage:
``python runtime_image/build/archives.py dist/images``, as root, after ``wheelhouse.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

# A script's own folder is on the path, its parent is not; and this runs before we are installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from build.base import Base, find_base
from build.digests import digest_of, digest_of_file
from build.oci import write_archive
from build.source import REPOSITORY
from build.wheelhouse import IMAGES
from build.workshop import BuildError, Workshop, cache_root, cached, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "localhost/terrace/"
LIST = "images.json"
_MOST_STORED_BYTES = 6 * 1024**3
"""Layers of earlier builds stay in buildah's store, so that a build finds them, up to here."""
_NEEDED_BYTES = 2 * 1024**3


class Inputs(NamedTuple):
    """What images are made from."""

    wheelhouse: Path
    base: Base
    tag: str

    @property
    def key(self) -> str:
        """Stands for everything that decides the archives' bytes."""
        here = Path(__file__)
        files = (REPOSITORY / "Dockerfile", here, here.with_name("oci.py"))
        digests = [digest_of_file(path) for path in files]
        wheels = (self.wheelhouse / "key").read_text()
        return digest_of(wheels, self.base.key, self.tag, *digests)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the folder; exit 1 with one message when that cannot be."""
    signal.signal(signal.SIGTERM, _terminate)
    parser = argparse.ArgumentParser(prog="archives.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="made anew, usually dist/images")
    parser.add_argument("--wheelhouse", type=Path, default=REPOSITORY / "dist/wheelhouse")
    parser.add_argument("--tag", default=project_version(), help="default: the project's version")
    options = parser.parse_args(arguments)
    try:
        check_machine()
        inputs = Inputs(options.wheelhouse.resolve(), find_base(), options.tag)
        make_archives(options.folder.resolve(), inputs)
    except BuildError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; no archive is left half-made")


def check_machine() -> None:
    """Raise BuildError where images cannot be built this way."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise BuildError(
            "image archives are built by root on Linux. With docker or podman: make images"
        )
    if not shutil.which("buildah"):
        raise BuildError("there is no buildah. Debian, Ubuntu: apt-get install buildah")


def make_archives(folder: Path, inputs: Inputs) -> None:
    """Make ``folder`` anew unless it holds what it would become. Raises BuildError."""
    key = inputs.key
    if _is_whole(folder, key):
        say(f"{folder}: nothing has changed")
        return

    def make(workshop: Workshop, staging: Path) -> None:
        stored = cache_root() / "buildah"
        # Builds of other checkouts, too, give names in it and make room.
        with workshop.alone_with(stored):
            fill(workshop, staging, Store(workshop, stored))

    def fill(workshop: Workshop, staging: Path, store: Store) -> None:
        store.make_room()
        context = build_context(workshop, inputs)
        bases = store.bases(inputs.base)
        images = {}
        for image in IMAGES:
            store.build(context, image, bases)
            target, reference = staging / f"{image}.tar", f"{PREFIX}{image}:{inputs.tag}"
            images[image] = write_archive(store.layout, image, reference, target)
        (staging / LIST).write_text(json.dumps({"key": key, "images": images}, indent=1) + "\n")

    cached(folder, make, _NEEDED_BYTES, lambda found: _is_whole(found, key))
    for name, image in json.loads((folder / LIST).read_text())["images"].items():
        size = (folder / f"{name}.tar").stat().st_size
        layers = " + ".join(f"{each / 1e6:.1f}" for each in image["layers"])
        say(f"{folder / name}.tar: {size / 1e6:.1f} MB ({layers}), {image['name']}")


def build_context(workshop: Workshop, inputs: Inputs) -> Path:
    """A folder with all that the Dockerfile copies, which nobody changes meanwhile."""
    context = workshop.staging / "context"
    shutil.copytree(inputs.wheelhouse, context / "dist/wheelhouse")
    shutil.copy(REPOSITORY / "Dockerfile", context)
    return context


class Store:
    """buildah's images, apart from all others on this machine."""

    def __init__(self, workshop: Workshop, folder: Path) -> None:
        self.layout = workshop.staging / "layout"
        """The images as buildah exports them."""
        self._workshop = workshop
        self._folder = folder
        # An overlay cannot lie on an overlay, as in a container.
        driver = "vfs" if _file_system(folder.parent) == "overlay" else "overlay"
        # In a mount namespace of its own each time: no mount outlives a build that was killed.
        self._command = [
            "unshare",
            "--mount",
            "buildah",
            "--root",
            str(folder / driver),
            "--storage-driver",
            driver,
        ]
        self._command += ["--runroot", str(folder / "run")]

    def make_room(self) -> None:
        """Forget all layers of earlier builds when they have become too many."""
        if _bytes_under(self._folder) > _MOST_STORED_BYTES:
            say("removing what earlier builds left")
            shutil.rmtree(self._folder)

    def bases(self, base: Base) -> dict[str, str]:
        """Names of the base images by build argument, imported unless they are there."""
        made = {}
        for argument, path in (("BASE", base.slim), ("INSTALL_BASE", base.full)):
            name = made[argument] = f"localhost/terrace/base:{path.stem}-{base.key}"
            if not self._has(name):
                container = f"terrace-{path.stem}-{base.key}"
                self._quietly(["rm", container])
                self._run(["from", "--name", container, "scratch"], f"the base {path.stem}")
                self._run(["add", "--quiet", container, str(path), "/"], "unpacking it")
                commit = ["commit", "--quiet", "--timestamp", "0", "--rm", container, name]
                self._run(commit, "storing it")
        return made

    def build(self, context: Path, image: str, arguments: Mapping[str, str]) -> None:
        """Build one image with the Dockerfile's ``arguments`` and put it into the layout."""
        argv = ["bud", "--isolation", "chroot", "--layers", "--quiet"]
        given = {"WHEELS": "local", **arguments}
        argv += [f"--build-arg={name}={value}" for name, value in given.items()]
        argv += ["--timestamp", "0", "--target", image, "--tag", f"localhost/build/{image}"]
        self._run([*argv, str(context)], f"building {image}")
        argv = ["push", "--quiet", f"localhost/build/{image}"]
        self._run([*argv, f"oci:{self.layout}:{image}"], f"exporting {image}")

    def _has(self, name: str) -> bool:
        return self._quietly(["inspect", "--type", "image", name])

    def _run(self, arguments: Sequence[str], what: str) -> None:
        self._workshop.run([*self._command, *arguments], what)

    def _quietly(self, arguments: Sequence[str]) -> bool:
        """Whether it went well; it may have had nothing to do."""
        argv = [*self._command, *arguments]
        return subprocess.run(argv, capture_output=True, check=False, timeout=600).returncode == 0  # noqa: S603 - buildah with our own arguments


def project_version() -> str:
    """The version in pyproject.toml."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return str(settings["project"]["version"])


def _is_whole(folder: Path, key: str) -> bool:
    path = folder / LIST
    if not path.is_file():
        return False
    found: dict[str, Any] = json.loads(path.read_text())
    return found["key"] == key and all((folder / f"{name}.tar").is_file() for name in IMAGES)


def _bytes_under(folder: Path) -> int:
    files = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in files)


def _file_system(path: Path) -> str:
    """Kind of the file system that ``path`` is on, as /proc/mounts calls it."""
    path.mkdir(parents=True, exist_ok=True)
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holders = [(len(at), kind) for at, kind in mounts if path.resolve().is_relative_to(at)]
    return max(holders, default=(0, ""))[1]


def _terminate(*_: object) -> NoReturn:
    # As an exception, so that the build's children are ended and its folder is removed.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
