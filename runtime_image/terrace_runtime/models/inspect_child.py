"""The process that reads an untrusted header: ``python -m terrace_runtime.models.inspect_child F``.

Owns: giving up its own rights before the first byte is read. Prints one FetchOutcome as JSON and
exits 0, also for a bad file; any other end means that a limit struck. Next: ``inspect`` reads it.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

from terrace_runtime.contract import FetchOutcome
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

ADDRESS_BYTES: Final = 1 << 30
CPU_SECONDS: Final = 60
_NO_DIGEST: Final = "0" * 64


def main(path: Path) -> None:
    """Inspect ``path`` under limits."""
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
    sys.stdout.write(_outcome(path).model_dump_json())


def _outcome(path: Path) -> FetchOutcome:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return FetchOutcome(facts=model_facts(read_header(file, size), _NO_DIGEST))
    except FetchError as error:
        return FetchOutcome(failure=error.failure())
    except FileNotFoundError:
        return FetchOutcome(failure=FetchError("NotFound", f"no such file: {path}").failure())
    except OSError as error:
        failure = FetchError("InvalidModel", f"{path} cannot be read: {error.strerror}")
        return FetchOutcome(failure=failure.failure())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
