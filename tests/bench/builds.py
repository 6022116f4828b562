"""The builds of llama.cpp that benchmarks run, as folders that hold the package ``llama_cpp``.

Owns: unpacking a wheel once, where every later run finds it. Does not own: building wheels
(``build/wheel.py``), the peer's programs (``peer.py``). Next: ``servers.py`` and ``kernels.py`` put
such a folder before our own environment, whose build is for any CPU and not the images'.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from build.wheel import build_wheel, wheel_parser
from build.workshop import cache_root, cached

if TYPE_CHECKING:
    from pathlib import Path

    from build.workshop import Workshop


def llama_site(option: str = "--dispatch") -> Path:
    """The folder of one build, by the wheel's option; built first where it is not there.

    ``--dispatch`` is what our images hold: kernels for every CPU, chosen when the process starts.
    Raises BuildError.
    """
    wheel = build_wheel(wheel_parser().parse_args([option]))

    def make(_: Workshop, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                folder, [n for n in archive.namelist() if n.startswith("llama_cpp/")]
            )

    return cached(cache_root() / "sites" / wheel.parent.name, make)
