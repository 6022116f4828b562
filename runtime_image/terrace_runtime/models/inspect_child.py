"""The process that reads an untrusted header: ``python -m terrace_runtime.models.inspect_child F``.

Several files are the parts of one model, in order.

Owns: giving up its own rights before the first byte is read. Prints one FetchOutcome as JSON and
exits 0, also for a bad file; any other end means that a limit struck. Next: ``inspect`` reads it.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import FetchOutcome
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import facts_of
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from collections.abc import Sequence

ADDRESS_BYTES: Final = 1 << 30
CPU_SECONDS: Final = 60
_NO_DIGEST: Final = "0" * 64


def main(paths: Sequence[Path]) -> None:
    """Inspect ``paths`` under limits."""
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
    sys.stdout.write(_outcome(paths).model_dump_json())


def _outcome(paths: Sequence[Path]) -> FetchOutcome:
    headers = []
    for path in paths:
        try:
            with path.open("rb") as file:
                headers.append(read_header(file, path.stat().st_size))
        except FetchError as error:
            return FetchOutcome(failure=error.failure())
        except FileNotFoundError:
            return FetchOutcome(failure=FetchError("NotFound", f"no such file: {path}").failure())
        except OSError as error:
            failure = FetchError("InvalidModel", f"{path} cannot be read: {error.strerror}")
            return FetchOutcome(failure=failure.failure())
    try:
        return FetchOutcome(facts=facts_of(headers, _NO_DIGEST))
    except FetchError as error:
        return FetchOutcome(failure=error.failure())


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
