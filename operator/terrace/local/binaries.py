"""Where the programs of the control plane come from.

Owns: the order of the sources: TERRACE_K8S_BIN, the user's cache, official releases, a build from
the Go modules. Does not own: downloading (``releases.py``) and building (``build.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from terrace.local.errors import LocalClusterError

BIN_VARIABLE = "TERRACE_K8S_BIN"


def find_binaries(
    names: tuple[str, ...], bin_dir: Path | None, report: Callable[[str], None]
) -> Mapping[str, Path]:
    """A path for each name."""
    folder = bin_dir or Path(os.environ.get(BIN_VARIABLE, ""))
    found = {name: folder.absolute() / name for name in names}
    for name, path in found.items():
        if not os.access(path, os.X_OK):
            raise LocalClusterError(f"{name} is missing in {folder}; set {BIN_VARIABLE}")
    return found
