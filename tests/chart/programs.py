"""The programs that tests of the chart run, built once from the Go modules that ``go/`` pins.

Owns: how Helm 3 and kubeconform are built and where they are kept. Does not own: Helm 4, which the
local cluster brings (``terrace.local.binaries``). ``PYTHONPATH=tests python -m chart.programs``
builds what is missing, because no test's time limit fits a build.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

from terrace.local.binaries import cache_folder, find_binaries
from terrace.local.build import build_package, find_go, locked
from terrace.local.errors import LocalClusterError

MODULE = Path(__file__).parent / "go"
_PACKAGES = {
    "helm3": "helm.sh/helm/v3/cmd/helm",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
}


class NotBuiltError(Exception):
    """There is no such program here, and it cannot be built; the message says why."""


def helms() -> dict[str, Path]:
    """Both helms, by the name that tests show."""
    return {"helm4": helm4(), "helm3": program("helm3")}


def helm4() -> Path:
    """The local cluster's own."""
    try:
        return find_binaries(["helm"], None, print)["helm"]
    except LocalClusterError as error:
        raise NotBuiltError(str(error)) from error


def program(name: str) -> Path:
    """One program's path; builds it the first time, about a minute on two cores.

    Raises NotBuiltError.
    """
    base = cache_folder().parents[1] / "test-programs"
    target = base / f"{name}-{_digest(name)}"
    if not os.access(target, os.X_OK):
        with locked(base, _tell):
            if not os.access(target, os.X_OK):  # else the one we waited for has built it
                _build(name, target)
    return target


def _build(name: str, target: Path) -> None:
    _tell(f"building {name} from its Go module")
    try:
        go = find_go(cache_folder().parent, _tell)
        build_package(_PACKAGES[name], MODULE, _flags(name), target, go, _tell)
    except LocalClusterError as error:
        raise NotBuiltError(str(error)) from error


def _flags(name: str) -> str:
    """A plain build of Helm 3 takes itself for v3.0 and the cluster of a template for v1.20."""
    if name != "helm3":
        return "-s -w"
    (minor,) = re.findall(r"k8s\.io/client-go v0\.(\d+)", (MODULE / "go.mod").read_text())
    (version,) = re.findall(r"helm\.sh/helm/v3 (\S+)", (MODULE / "go.mod").read_text())
    stamps = {"helm.sh/helm/v3/internal/version.version": version}
    for package in ("chartutil", "lint/rules"):
        stamps[f"helm.sh/helm/v3/pkg/{package}.k8sVersionMajor"] = "1"
        stamps[f"helm.sh/helm/v3/pkg/{package}.k8sVersionMinor"] = minor
    return " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in stamps.items())])


def _digest(name: str) -> str:
    digest = hashlib.sha256(_flags(name).encode())
    for file in ("go.mod", "go.sum"):
        digest.update((MODULE / file).read_bytes())
    return digest.hexdigest()[:12]


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Build what is missing."""
    for path in (*helms().values(), program("kubeconform")):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
