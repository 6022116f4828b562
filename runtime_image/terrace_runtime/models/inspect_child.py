"""The process that reads an untrusted header.

``python -m terrace_runtime.models.inspect_child ROLE SIZE:FILE...``: several files are the parts of
one model, in order; SIZE is the whole file's where FILE is only its beginning, else 0.

Owns: giving up its own rights before the first byte is read. Prints one FetchOutcome as JSON and
exits 0, also for a bad file; any other end means that a limit struck. Next: ``inspect`` reads it.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import FetchOutcome
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import facts_of
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.lora import adapter_facts
from terrace_runtime.models.projector import projector_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.models.gguf_header import Header

ADDRESS_BYTES: Final = 1 << 30
CPU_SECONDS: Final = 60
_NO_DIGEST: Final = "0" * 64


def main(role: str, names: Sequence[str]) -> None:
    """Inspect the files of ``names`` under limits."""
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        _, hard = resource.getrlimit(limit)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, most))
    sys.stdout.write(_outcome(role, names).model_dump_json())


def _outcome(role: str, names: Sequence[str]) -> FetchOutcome:
    headers = []
    for name in names:
        size, _, path = name.partition(":")
        try:
            with Path(path).open("rb") as file:
                headers.append(read_header(file, int(size) or os.fstat(file.fileno()).st_size))
        except FetchError as error:
            return FetchOutcome(failure=error.failure())
        except FileNotFoundError:
            return FetchOutcome(failure=FetchError("NotFound", f"no such file: {path}").failure())
        except OSError as error:
            failure = FetchError("InvalidModel", f"{path} cannot be read: {error.strerror}")
            return FetchOutcome(failure=failure.failure())
    try:
        return _read(role, headers)
    except FetchError as error:
        return FetchOutcome(failure=error.failure())


def _read(role: str, headers: Sequence[Header]) -> FetchOutcome:
    if role == "adapter":
        return FetchOutcome(file=adapter_facts(headers, _NO_DIGEST))
    if role == "projector":
        return FetchOutcome(projector=projector_facts(headers, _NO_DIGEST))
    return FetchOutcome(facts=facts_of(headers, _NO_DIGEST))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
