"""The command line of the runtime image: ``serve``, ``fetch``, ``inspect``, ``prune``, ``engine``.

Owns: arguments, exit codes and the termination log. Does not own: any work. Next: ``api.serve``,
``models.fetch``, ``models.inspect_source``, ``models.prune``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from terrace_runtime.contract import (
    CONFIG_DIR,
    EXIT_BAD_CONFIG,
    EXIT_MODEL_MISSING,
    EXIT_PERMANENT,
    MAX_TERMINATION_BYTES,
    RUNTIME_CONFIG_FILE,
    RUNTIME_PORT,
    TERMINATION_LOG,
    FetchOutcome,
    FetchProgress,
    FetchSpec,
    PruneOutcome,
    PruneSpec,
    RuntimeConfig,
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
    prune = commands.add_parser(
        "prune",
        help="delete files from the model cache",
        description="Reads a PruneSpec (JSON) from TERRACE_PRUNE, deletes what nobody fetches and "
        "prints one PruneOutcome as JSON, which is also the termination message.",
    )
    prune.set_defaults(run=_prune)
    serve = commands.add_parser(
        "serve",
        help="serve the model that the configuration names",
        description="Serves OpenAI's API. SIGTERM drains: readiness turns red, running requests "
        "get the configured time. Exit codes: 11 bad configuration, 12 model file missing, "
        "13 the model cannot be loaded, 14 the engine died.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    serve.add_argument("--port", type=int, default=RUNTIME_PORT, help="default: %(default)s")
    serve.add_argument(
        "--config",
        type=Path,
        default=None,
        help=f"RuntimeConfig as JSON (default: {CONFIG_DIR}/{RUNTIME_CONFIG_FILE})",
    )
    serve.set_defaults(run=_serve)
    _add_inspect(commands.add_parser("inspect", help="print the facts of a GGUF as JSON"))
    engine = commands.add_parser("engine", help="internal: the engine's own process")
    engine.add_argument("fd", type=int, metavar="FD", help="an inherited socket")
    engine.set_defaults(run=_engine)
    return parser


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads headers only, of remote files by range requests, and prints ModelFacts as JSON "
        "(FileFacts of an adapter). After an error: a FetchOutcome with its failure, exit code 10 "
        "where trying again is useless, else 1. Reads HF_ENDPOINT, HF_TOKEN, AWS_ENDPOINT_URL_S3, "
        "AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."
    )
    parser.add_argument(
        "source",
        metavar="URI_OR_PATH",
        help="a path, hf://, https://, s3://, oci:// or demo://; of a split file its first part",
    )
    parser.add_argument(
        "--role",
        choices=("model", "draft", "adapter"),
        default="model",
        help="what the file is for",
    )
    parser.add_argument(
        "--digest", action="store_true", help="read a local file whole for its sha256"
    )
    parser.add_argument(
        "--allow-network",
        action="append",
        default=[],
        metavar="CIDR",
        help="a private network that sources may lie in; may be given several times",
    )
    parser.set_defaults(run=_inspect)


def _serve(arguments: argparse.Namespace) -> int:
    from terrace_runtime.telemetry import configure_logging  # noqa: PLC0415 - own imports only

    configure_logging()
    path = arguments.config or pod_path(CONFIG_DIR) / RUNTIME_CONFIG_FILE
    try:
        config = RuntimeConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        return _fail(EXIT_BAD_CONFIG, f"{path} cannot be read: {error.strerror}")
    except ValidationError as error:
        return _fail(EXIT_BAD_CONFIG, f"{path}: {_first_error(error)}")
    if not pod_path(config.model_path).is_file():
        return _fail(EXIT_MODEL_MISSING, f"the model file {config.model_path} is missing")
    from terrace_runtime.api.app import create_app  # noqa: PLC0415 - slow to import
    from terrace_runtime.api.server import run_server  # noqa: PLC0415 - as above
    from terrace_runtime.engine.process import ChildEngine  # noqa: PLC0415 - as above

    try:
        app = create_app(ChildEngine(config), config)
    except ValueError as error:
        return _fail(EXIT_BAD_CONFIG, f"{path}: trust_key: {error}")
    try:
        ending = run_server(app, arguments.host, arguments.port)
    except OSError as error:
        return _fail(1, f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}")
    return _fail(ending.code, ending.reason) if ending.code else 0


def _engine(arguments: argparse.Namespace) -> int:
    from terrace_runtime.engine.child import main as run_child  # noqa: PLC0415 - own imports only

    return run_child(arguments.fd)


def _fail(code: int, message: str) -> int:
    _terminate(message)
    sys.stderr.write(message + "\n")
    return code


def _fetch(_: argparse.Namespace) -> int:
    import stamina  # noqa: PLC0415 - each command loads its own
    from stamina.instrumentation import RetryDetails  # noqa: PLC0415, TC002 - as above

    from terrace_runtime.models.fetch import Work, fetch  # noqa: PLC0415 - as above
    from terrace_runtime.models.progress import ProgressReporter  # noqa: PLC0415 - as above

    try:
        spec = FetchSpec.model_validate_json(os.environ.get("TERRACE_FETCH", ""))
    except ValidationError as error:
        return _fail(EXIT_BAD_CONFIG, f"TERRACE_FETCH is not a FetchSpec: {_first_error(error)}")
    reporter = ProgressReporter(_print_progress)

    def on_retry(details: RetryDetails) -> None:
        sys.stderr.write(f"{details.caused_by}; next try in {details.wait_for:.0f} s\n")
        sys.stderr.flush()
        reporter.repeat()

    stamina.instrumentation.set_on_retry_hooks([on_retry])
    # As process 1 of a container we get no default action. What is downloaded so far is kept.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    outcome = asyncio.run(fetch(Work(spec, reporter)))
    _terminate(_outcome_json(outcome))
    return _said(outcome)


def _inspect(arguments: argparse.Namespace) -> int:
    from terrace_runtime.models.inspect_source import (  # noqa: PLC0415 - each command loads its own
        Question,
        inspect_source,
    )

    question = Question(
        arguments.source,
        arguments.role,
        arguments.digest,
        tuple(arguments.allow_network),
        os.environ,
    )
    outcome = asyncio.run(inspect_source(question))
    facts = outcome.facts or outcome.file
    if facts is not None:
        sys.stdout.write(facts.model_dump_json(indent=2) + "\n")
        return 0
    sys.stdout.write(outcome.model_dump_json(exclude_defaults=True) + "\n")
    return _said(outcome)


def _prune(_: argparse.Namespace) -> int:
    from terrace_runtime.models.prune import prune  # noqa: PLC0415 - each command loads its own

    try:
        spec = PruneSpec.model_validate_json(os.environ.get("TERRACE_PRUNE", ""))
    except ValidationError as error:
        return _fail(EXIT_BAD_CONFIG, f"TERRACE_PRUNE is not a PruneSpec: {_first_error(error)}")
    outcome = prune(spec, time.time())
    line = outcome.model_dump_json(exclude_defaults=True)
    sys.stdout.write(line + "\n")
    _terminate(line)
    return _said(outcome)


def _said(outcome: FetchOutcome | PruneOutcome) -> int:
    """The exit code of an outcome, its failure told."""
    if outcome.failure is None:
        return 0
    sys.stderr.write(f"{outcome.failure.reason}: {outcome.failure.message}\n")
    return EXIT_PERMANENT if outcome.failure.permanent else 1


def _print_progress(progress: FetchProgress) -> None:
    sys.stdout.write(progress.model_dump_json() + "\n")
    sys.stdout.flush()


def _outcome_json(outcome: FetchOutcome) -> str:
    """``outcome`` within the bytes of a termination message."""
    from terrace_runtime.models.fit import message  # noqa: PLC0415 - each command loads its own

    return message(outcome, MAX_TERMINATION_BYTES)


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
