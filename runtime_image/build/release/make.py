"""Makes all that a release publishes, in one folder that appears whole or not at all.

Owns: the command line, the order, the checks that stop a release, SHA256SUMS. Does not own: the
source (``source.py``), versions (``versions.py``), lists of parts
(``sbom.py``), images (``make image-archives``; ``images.py`` checks them).
Everything but images is built from a copy of the last commit, with its time, by tools that are
pinned. Usage: ``make release``; docs/releasing.md says what comes out and how it is checked.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# A script's own folder is on the path, its parent is not; and this may run before we are installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from build.release.images import IMAGES, image_sbom, lacking_for_images
from build.release.sbom import distribution_sbom
from build.release.source import Source, take_source
from build.release.versions import agreed_version, unreleased_entries
from build.source import REPOSITORY, index_environment
from build.workshop import BuildError, Workshop, cached, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

TOOLS = "runtime_image/build/release/tools.txt"
SUMS = "SHA256SUMS"
_NEEDED_BYTES = {"no": 256 * 1024**2, "auto": 2 * 1024**3, "yes": 2 * 1024**3}
"""By --images."""
_FIND_HELM = """
import sys
from terrace.local.binaries import find_binaries
print(find_binaries(["helm"], None, lambda line: print(line, file=sys.stderr))["helm"])
"""
"""The pinned helm, built when it is absent; in a child, for this file imports nothing of ours."""


@dataclass
class Release:
    """One release while it is made."""

    source: Source
    version: str
    folder: Path
    workshop: Workshop
    lacking: str
    """Why there are no images; empty when there are."""

    @property
    def environment(self) -> dict[str, str]:
        """For the tools: the commit's time, and nothing of the user's that shows in bytes."""
        fixed = {"SOURCE_DATE_EPOCH": str(self.source.epoch), "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        return {**index_environment(), **fixed}

    @property
    def wheel(self) -> Path:
        """The built wheel."""
        (found,) = self.folder.glob("*.whl")
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder; exit 1 with one message, and change nothing, when that cannot be."""
    signal.signal(signal.SIGTERM, _terminate)
    options = _parser().parse_args(arguments)
    try:
        print(make_release(options))
    except BuildError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror}: {error.filename}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the folder is as it was")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make.py",
        description="Make wheel, source distribution, chart, CRDs, images, lists of parts and "
        f"{SUMS} of the last commit.",
        epilog="ALLOW_DIRTY=1 takes the working tree as it is instead of the last commit.",
    )
    parser.add_argument("folder", type=Path, nargs="?", default=REPOSITORY / "dist/release")
    parser.add_argument(
        "--images",
        choices=("auto", "yes", "no"),
        default="auto",
        help="auto: made where that is possible, else said to be left out; yes: refuse without",
    )
    parser.add_argument(
        "--image-archives",
        type=Path,
        metavar="DIR",
        help="take the archives that lie there instead of making them",
    )
    return parser


def make_release(options: argparse.Namespace) -> str:
    """Make ``options.folder`` anew; returns what there is to tell. Raises BuildError."""
    folder: Path = options.folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{folder.name}.new")
    told: list[str] = []

    def make(workshop: Workshop, target: Path) -> None:
        allow_dirty = os.environ.get("ALLOW_DIRTY", "0") not in {"", "0"}
        source = take_source(REPOSITORY, workshop.staging / "source", allow_dirty=allow_dirty)
        version = agreed_version(source.folder)
        release = Release(source, version, target, workshop, _lacking(options))
        _build(release, options)
        told.extend(_summary(release, folder))

    with _one_at_a_time(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        cached(fresh, make, _NEEDED_BYTES[options.images])
        previous = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            folder.rename(previous)
        fresh.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    return "\n".join(told)


def _build(release: Release, options: argparse.Namespace) -> None:
    _distribution(release)
    _check_program(release)
    _chart(release)
    _crds(release)
    if not release.lacking:
        _images(release, options)
    shutil.copyfile(release.source.folder / "LICENSE", release.folder / "LICENSE")
    _write(release.folder / SUMS, "".join(_sums(release.folder)))
    for path in release.folder.iterdir():
        path.chmod(0o644)


def _distribution(release: Release) -> None:
    """The source distribution, the wheel built from it, and what it depends on."""
    source = release.source.folder
    pins = ["--build-constraints", str(source / TOOLS), "--require-hashes"]
    argv = [_uv(), "build", *pins, "--python", sys.executable]
    argv += ["--out-dir", str(release.folder), str(source)]
    release.workshop.run(argv, "wheel and source distribution", release.environment)
    (release.folder / ".gitignore").unlink(missing_ok=True)  # uv's own
    lock = (source / "uv.lock").read_text(encoding="utf-8")
    sbom = distribution_sbom(lock, "terrace", list(release.folder.iterdir()))
    _write(release.folder / f"terrace-{release.version}.cdx.json", sbom)


def _check_program(release: Release) -> None:
    """The wheel's own command line must say the version too."""
    site = release.workshop.staging / "site"
    shutil.unpack_archive(release.wheel, site, "zip")
    said = _output(["-m", "terrace.cli", "--version"], {**os.environ, "PYTHONPATH": str(site)})
    if said != f"terrace {release.version}":
        raise BuildError(
            f"`terrace --version` says {said!r}, pyproject.toml states {release.version}: "
            "change operator/terrace/__init__.py"
        )


def _chart(release: Release) -> None:
    charts = release.source.folder / "charts/terrace"
    helm = _output(["-c", _FIND_HELM], os.environ)
    argv = [helm, "package", str(charts), "--destination", str(release.folder)]
    release.workshop.run(argv, "chart", release.environment)


def _crds(release: Release) -> None:
    files = sorted((release.source.folder / "crds").glob("*.yaml"))
    texts = (file.read_text(encoding="utf-8").removeprefix("---\n") for file in files)
    _write(release.folder / f"terrace-crds-{release.version}.yaml", "---\n".join(texts))


def _images(release: Release, options: argparse.Namespace) -> None:
    folder = options.image_archives or _made_images(release)
    for name in IMAGES:
        archive = folder / f"{name}.tar"
        say(f"checking {archive}")
        sbom = image_sbom(archive, release.wheel)
        stem = f"terrace-{name}-{release.version}.image"
        (release.folder / f"{stem}.cdx.json").write_bytes(sbom)
        shutil.copyfile(archive, release.folder / f"{stem}.tar")


def _lacking(options: argparse.Namespace) -> str:
    """Why a release has no images; empty when it has. Raises BuildError if it must have them."""
    if options.images == "no":
        return "IMAGES=no"
    if options.image_archives is not None:
        absent = [name for name in IMAGES if not (options.image_archives / f"{name}.tar").is_file()]
        lacking = f"there is no {options.image_archives}/{absent[0]}.tar" if absent else ""
    else:
        lacking = lacking_for_images()
    if lacking and options.images == "yes":
        raise BuildError(f"there can be no images: {lacking}")
    return lacking


def _made_images(release: Release) -> Path:
    """The archives of the working tree, which differs from the copy in nothing that shows."""
    argv = ["make", "--no-print-directory", "-C", str(REPOSITORY), "image-archives"]
    release.workshop.run(argv, "images")
    return REPOSITORY / "dist/images"


def _summary(release: Release, folder: Path) -> Iterator[str]:
    source = release.source
    moment = datetime.fromtimestamp(source.epoch, UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield f"{folder}: Terrace {release.version}, commit {source.commit[:12]} of {moment}"
    for path in sorted(release.folder.iterdir()):
        yield f"  {path.stat().st_size / 1e6:8.2f} MB  {path.name}"
    if release.lacking:
        yield f"left out: the images and their lists of parts: {release.lacking}"
    if source.is_dirty:
        yield "NOT FOR PUBLISHING: the working tree holds changes that no commit has (ALLOW_DIRTY)"
    waiting = unreleased_entries((source.folder / "CHANGELOG.md").read_text(encoding="utf-8"))
    if waiting:
        yield f"note: CHANGELOG.md has {waiting} entries that came after {release.version}"


def _sums(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"


def _one_at_a_time(folder: Path) -> AbstractContextManager[object]:
    lock = folder.with_name(f".{folder.name}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _output(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What our own Python prints; its progress and errors go where ours go."""
    done = subprocess.run(  # noqa: S603 - fixed arguments, without a shell
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"python {' '.join(arguments).strip()} failed; the reason is above")
    return done.stdout.strip()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv") or shutil.which(REPOSITORY / ".uv/bin/uv")
    if not found:
        raise BuildError("there is no uv: run `make init`")
    return str(found)


def _terminate(*_: object) -> NoReturn:
    # As an exception, so that children are ended and the unfinished folder is removed.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
