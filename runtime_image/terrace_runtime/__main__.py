"""The command line of the runtime image: ``serve``, ``fetch``, ``inspect`` and ``engine``.

Owns: arguments, exit codes and the termination log. Does not own: any work. Next: ``api.serve``,
``models.fetch``, ``models.inspect``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from terrace_runtime.contract import (
    EXIT_BAD_CONFIG,
    EXIT_PERMANENT,
    MAX_TERMINATION_BYTES,
    TERMINATION_LOG,
    FetchOutcome,
    FetchProgress,
    FetchSpec,
    pod_path,
)


def main() -> None:
    """Run one command and exit with its code."""
    arguments = _parser().parse_args()
    sys.exit(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m terrace_runtime",
        description="Serve a GGUF model, or fetch and inspect one.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = commands.add_parser(
        "fetch",
        help="fetch a model into the cache",
        description="Reads a FetchSpec (JSON) from TERRACE_FETCH, prints progress as JSON lines "
        "and writes a FetchOutcome to the termination log.",
    )
    fetch.set_defaults(run=_fetch)
    inspect = commands.add_parser("inspect", help="print the facts of a GGUF as JSON")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.set_defaults(run=_inspect)
    return parser


def _fetch(_: argparse.Namespace) -> int:
    from terrace_runtime.models.fetch import fetch  # noqa: PLC0415 - each command loads its own
    from terrace_runtime.models.progress import ProgressReporter  # noqa: PLC0415 - as above

    try:
        spec = FetchSpec.model_validate_json(os.environ.get("TERRACE_FETCH", ""))
    except ValidationError as error:
        message = f"TERRACE_FETCH is not a FetchSpec: {_first_error(error)}"
        _terminate(message)
        return EXIT_BAD_CONFIG
    outcome = asyncio.run(fetch(spec, ProgressReporter(_print_progress)))
    _terminate(_outcome_json(outcome))
    if outcome.failure is None:
        return 0
    sys.stderr.write(f"{outcome.failure.reason}: {outcome.failure.message}\n")
    return EXIT_PERMANENT if outcome.failure.permanent else 1


def _inspect(arguments: argparse.Namespace) -> int:
    from terrace_runtime.models.errors import FetchError  # noqa: PLC0415 - each command loads its own
    from terrace_runtime.models.inspect import inspect_file  # noqa: PLC0415 - as above

    try:
        facts = inspect_file(arguments.file)
    except FetchError as error:
        sys.stderr.write(f"{error.reason}: {error}\n")
        return EXIT_PERMANENT if error.permanent else 1
    sys.stdout.write(facts.model_dump_json(indent=2) + "\n")
    return 0


def _print_progress(progress: FetchProgress) -> None:
    sys.stdout.write(progress.model_dump_json() + "\n")
    sys.stdout.flush()


def _outcome_json(outcome: FetchOutcome) -> str:
    """``outcome`` within the bytes of a termination message."""
    from terrace_runtime.models.fit import fit  # noqa: PLC0415 - each command loads its own

    if outcome.facts is not None:
        room = MAX_TERMINATION_BYTES - len(outcome.path.encode()) - 128
        facts = fit(outcome.facts, room)
        if facts.layers_are_merged:
            sys.stderr.write("layers were merged upwards: the exact facts are too long\n")
        outcome = outcome.model_copy(update={"facts": facts})
    return outcome.model_dump_json(exclude_defaults=True)


def _terminate(message: str) -> None:
    """Leave the last word where Kubernetes looks for it."""
    try:
        pod_path(TERMINATION_LOG).write_bytes(message.encode()[:MAX_TERMINATION_BYTES])
    except OSError as error:
        sys.stderr.write(f"{TERMINATION_LOG} cannot be written: {error}\n{message}\n")


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "(document)"
    return f"{field}: {first['msg']}"


if __name__ == "__main__":
    main()
