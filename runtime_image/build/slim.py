"""Makes a wheel with run-time dispatch small: one copy of each library, kernels beside it.

Owns: which files of the wheel a replica needs, and the wheel's RECORD. Does not own: building. The
sdist's build installs every library three times (links become copies), headers, CMake files, and
the kernels into a folder beside the package, where nobody looks for them. Next: ``check.py``.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LIBRARIES = "llama_cpp/lib/"
_KERNELS = re.compile(r"^bin/(libggml-[a-z0-9_-]+\.so)$")
_LIBRARY = re.compile(r"^llama_cpp/lib/(libllama|libggml|libggml-base|libmtmd)\.so[\d.]*$")
_LOADED = {"libllama.so", "libggml.so.0", "libggml-base.so.0", "libggml.so", "libmtmd.so"}
"""The binding opens ``libllama.so``, which is bound to the two with a number. It opens
``libggml.so`` as well: a second registry in the process, which nobody asks anything.
``libmtmd.so`` is bound to ``libllama.so.0``, which is how the one that is open calls itself."""


def slim_wheel(wheel: Path, libraries: Iterable[Path] = ()) -> None:
    """Rewrite ``wheel`` in place, with ``libraries`` of the system beside its own; idempotent."""
    smaller = wheel.with_suffix(".new")
    record: list[tuple[str, str, int]] = []
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        record_name = next(n for n in old.namelist() if n.endswith(".dist-info/RECORD"))
        contents = {_LIBRARIES + path.name: path.read_bytes() for path in libraries}
        for info in old.infolist():
            name = _kept_as(info.filename)
            if name is not None and info.filename != record_name:
                contents[name] = old.read(info)
        for name, content in contents.items():
            new.writestr(_entry(name), content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record.append((name, f"sha256={digest.decode()}", len(content)))
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows([*record, (record_name, "", "")])
        new.writestr(_entry(record_name), rows.getvalue())
    smaller.replace(wheel)


def _entry(name: str) -> zipfile.ZipInfo:
    # A date of its own would make every build another wheel.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = (0o755 if ".so" in name else 0o644) << 16
    return entry


def _kept_as(name: str) -> str | None:
    """Where a file of the wheel goes; None: nowhere."""
    if kernels := _KERNELS.match(name):
        return _LIBRARIES + kernels[1]
    if _LIBRARY.match(name):
        return name if name.removeprefix(_LIBRARIES) in _LOADED else None
    return name if name.startswith(("llama_cpp/", "llama_cpp_python-")) else None
