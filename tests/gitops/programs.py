"""What the tests of this folder need from Go modules: the evaluators, and other projects' CRDs.

Owns: making both once for each content of their sources, in the user's cache. Does not own: what
they are used for. ``python -m gitops.programs`` makes them and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from terrace.local.binaries import cache_folder
from terrace.local.build import find_go

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BUILD_S = 900.0
_GO = {
    "CGO_ENABLED": "0",
    "GOFLAGS": "",
    "GOSUMDB": "off",  # Checksums are here and in go.sum.
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


class Published(NamedTuple):
    """A module that ships its CRDs, and which of them."""

    module: str
    version: str
    checksum: str
    """As in a go.sum."""
    folder: str
    files: tuple[str, ...]


PUBLISHED = (
    Published(
        "github.com/argoproj/argo-cd/v3",
        "v3.5.7",
        "h1:Xm1BF+I5OgDKUG3SDK49vn2/Y5AMyaNVko+/JT08gj0=",
        "manifests/crds",
        ("application-crd.yaml",),
    ),
    Published(
        "github.com/fluxcd/kustomize-controller",
        "v1.9.6",
        "h1:XB+G3A0mky0j5uVHZWv4oSlS2RvZBoNIUhstIvY0JKE=",
        "config/crd/bases",
        ("kustomize.toolkit.fluxcd.io_kustomizations.yaml",),
    ),
    Published(
        "github.com/fluxcd/source-controller",
        "v1.9.6",
        "h1:nG534/bI6nVpyHra7ONAk6xDB3xPsVT+EOLHZHXPrrc=",
        "config/crd/bases",
        (
            "source.toolkit.fluxcd.io_gitrepositories.yaml",
            "source.toolkit.fluxcd.io_ocirepositories.yaml",
        ),
    ),
    Published(
        "github.com/external-secrets/external-secrets",
        "v1.3.2",
        "h1:u2J8RjlHIeF0oZCqtl92adI/uZWUwOesJIDkfql6LqQ=",
        "config/crds/bases",
        ("external-secrets.io_externalsecrets.yaml",),
    ),
)
GENERATED = "github.com/fluxcd/helm-controller/api/v2"
"""No published module has the CRD of HelmRelease: Flux's own generator makes it from its types."""


def evaluator() -> Path:
    """The program that judges objects as GitOps tools do."""
    with _made(HERE / "evaluator") as (target, partial):
        if not target.exists():
            flags = ["-trimpath", "-ldflags", "-s -w", "-o", str(partial)]
            _go(HERE / "evaluator", "build", *flags, ".")
            partial.replace(target)
    return target


def foreign_crds() -> Path:
    """A folder with the CRDs of the other projects that examples/gitops writes objects of."""
    with _made(HERE / "schemas", repr(PUBLISHED)) as (target, partial):
        if not target.exists():
            partial.mkdir()
            for published in PUBLISHED:
                _unpack(published, partial)
            arguments = ["crd", f"paths={GENERATED}", f"output:crd:dir={partial}"]
            _go(HERE / "schemas", "tool", "controller-gen", *arguments)
            partial.replace(target)
    return target


def _unpack(published: Published, folder: Path) -> None:
    """The CRDs out of a module, whose checksum has to be the pinned one."""
    name = f"{published.module}@{published.version}"
    found = json.loads(_go(folder, "mod", "download", "-json", name))
    assert found["Sum"] == published.checksum, f"{name} is not what it was: {found['Sum']}"
    with zipfile.ZipFile(found["Zip"]) as module:
        for file in published.files:
            text = module.read(f"{name}/{published.folder}/{file}")
            (folder / file).write_bytes(text)


@contextmanager
def _made(sources: Path, more: str = "") -> Iterator[tuple[Path, Path]]:
    """Where what these sources make belongs, and a place beside it; one process at a time."""
    digest = hashlib.sha256(more.encode())
    for file in sorted(path for path in sources.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    folder = cache_folder().parents[1] / "gitops"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{sources.name}-{digest.hexdigest()[:16]}"
    partial = target.with_name(f".{target.name}.part")
    with (folder / f"{sources.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield target, partial
        finally:
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)


def _go(folder: Path, *arguments: str) -> str:
    """What a go command prints, whatever the user has set for Go."""
    _tell(f"go {' '.join(arguments)}")
    done = subprocess.run(
        [str(find_go(cache_folder().parent, lambda _line: None)), *arguments],
        cwd=folder,
        env=os.environ | _GO,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, f"go {' '.join(arguments)}: {done.stdout} {done.stderr}"
    return done.stdout


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    for made in (evaluator(), foreign_crds()):
        _tell(f"made {made}")
