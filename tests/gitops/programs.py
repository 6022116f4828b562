"""What the tests of this folder need from Go modules: the evaluators, and other projects' CRDs.

Owns: making both once for each content of their sources, in the user's cache. Does not own: what
they are used for. ``python -m gitops.programs`` makes them and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from terrace.local.binaries import cache_folder
from terrace.local.build import build_package, find_go, locked, patiently
from terrace.local.errors import LocalClusterError

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
    with _made(HERE / "evaluator") as target:
        if not target.exists():
            build_package(".", HERE / "evaluator", "-s -w", target, _go(), _tell)
    return target


def foreign_crds() -> Path:
    """A folder with the CRDs of the other projects that examples/gitops writes objects of."""
    with _made(HERE / "schemas", repr(PUBLISHED)) as target:
        if not target.exists():
            # A name of its own: who was killed before us may still be writing.
            with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
                partial = Path(temporary) / "crds"
                partial.mkdir()
                for published in PUBLISHED:
                    _unpack(published, partial)
                arguments = ["crd", f"paths={GENERATED}", f"output:crd:dir={partial}"]
                run_go(HERE / "schemas", "tool", "controller-gen", *arguments)
                partial.replace(target)
    return target


def _unpack(published: Published, folder: Path) -> None:
    """The CRDs out of a module, whose checksum has to be the pinned one."""
    name = f"{published.module}@{published.version}"
    found = json.loads(run_go(folder, "mod", "download", "-json", name))
    assert found["Sum"] == published.checksum, f"{name} is not what it was: {found['Sum']}"
    with zipfile.ZipFile(found["Zip"]) as module:
        for file in published.files:
            text = module.read(f"{name}/{published.folder}/{file}")
            (folder / file).write_bytes(text)


@contextmanager
def _made(sources: Path, more: str = "") -> Iterator[Path]:
    """Where what these sources make belongs; one process at a time."""
    digest = hashlib.sha256(more.encode())
    for file in sorted(path for path in sources.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    folder = cache_folder().parents[1] / "gitops"
    with locked(folder, _tell):
        yield folder / f"{sources.name}-{digest.hexdigest()[:16]}"


def _go() -> Path:
    return find_go(cache_folder().parent, lambda _line: None)


def run_go(folder: Path, *arguments: str) -> str:
    """What a go command prints, whatever the user has set for Go."""

    def attempt() -> str:
        done = subprocess.run(
            [str(_go()), *arguments],
            cwd=folder,
            env=os.environ | _GO,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        if done.returncode != 0:
            raise LocalClusterError(f"go {' '.join(arguments)}: {done.stdout} {done.stderr}")
        return done.stdout

    _tell(f"go {' '.join(arguments)}")
    return patiently(attempt, _tell)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    for made in (evaluator(), foreign_crds()):
        _tell(f"made {made}")
