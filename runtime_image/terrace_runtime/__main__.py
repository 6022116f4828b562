"""The command line of the runtime image: ``serve``, ``fetch``, ``inspect``, ``prune``, ``engine``.

Owns: arguments. Does not own: any work, last words (``ending``). Next: ``api.server``,
``models.commands``.
"""

from __future__ import annotations

import terrace_runtime.first_process  # noqa: F401 - before all that takes time

# isort: split
import argparse
import logging
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from terrace_runtime.contract import (
    CONFIG_DIR,
    EXIT_ADDRESS,
    EXIT_BAD_CONFIG,
    EXIT_HOST_MEMORY,
    EXIT_MODEL_MISSING,
    RUNTIME_CONFIG_FILE,
    RUNTIME_PORT,
    RuntimeConfig,
    pod_path,
)
from terrace_runtime.ending import EndingError, fail, first_error
from terrace_runtime.logs import (
    LEVEL_ENV,
    add_log_options,
    chosen_options,
    configure_logging,
    log_in_child,
    relay,
)


def main() -> None:
    """Run one command and exit with its code."""
    arguments = _parser().parse_args()
    try:
        code = arguments.run(arguments)
    except Exception as error:  # whatever it is, Kubernetes shows it
        logging.getLogger(__name__).exception("bug")
        code = fail(1, f"a bug of Terrace ended it: {type(error).__name__}: {error}")
    sys.exit(code)


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
        "13 the model cannot be loaded, 14 the engine died, 15 host memory and 16 device memory "
        "too small, 17 the address cannot be had.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    serve.add_argument("--port", type=int, default=RUNTIME_PORT, help="default: %(default)s")
    serve.add_argument(
        "--config",
        type=Path,
        default=None,
        help=f"RuntimeConfig as JSON (default: {CONFIG_DIR}/{RUNTIME_CONFIG_FILE})",
    )
    add_log_options(serve)
    serve.set_defaults(run=_serve)
    _add_inspect(commands.add_parser("inspect", help="print the facts of a GGUF as JSON"))
    engine = commands.add_parser("engine", help="internal: the engine's own process")
    engine.add_argument("fd", type=int, metavar="FD", help="an inherited socket")
    engine.set_defaults(run=_engine)
    return parser


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads headers only, of remote files by range requests, and prints ModelFacts as JSON "
        "(ProjectorFacts of a projector, FileFacts of an adapter). After an error: a FetchOutcome "
        "with its failure, exit code 10 where trying again is useless, else 1. Reads HF_ENDPOINT, "
        "HF_TOKEN (or the token of hf auth login), AWS_ENDPOINT_URL_S3, AWS_REGION, "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and TERRACE_ALLOWED_NETWORKS "
        "(CIDRs, commas)."
    )
    parser.add_argument(
        "source",
        metavar="URI_OR_PATH",
        help="a path, hf://, https://, s3://, oci:// or demo://; of a split file its first part",
    )
    parser.add_argument(
        "--role",
        choices=("model", "projector", "draft", "adapter"),
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
    options = chosen_options(arguments, os.environ, is_terminal=sys.stderr.isatty())
    configure_logging("runtime", options)
    # The engine's process and llama.cpp in it log as we do; it reads its level from here.
    os.environ[LEVEL_ENV] = options.level
    try:
        config = _config(arguments.config or pod_path(CONFIG_DIR) / RUNTIME_CONFIG_FILE)
        return _run(config, arguments.host, arguments.port)
    except EndingError as ending:
        return fail(ending.code, str(ending))


def _config(path: Path) -> RuntimeConfig:
    try:
        config = RuntimeConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        words = f"{path} cannot be read: {error.strerror}"
        raise EndingError(EXIT_BAD_CONFIG, words) from error
    except ValidationError as error:
        raise EndingError(EXIT_BAD_CONFIG, f"{path}: {first_error(error)}") from error
    missing = [each for each in config.file_paths if not pod_path(each).is_file()]
    if missing:
        raise EndingError(EXIT_MODEL_MISSING, f"the model file {missing[0]} is missing")
    return config


def _run(config: RuntimeConfig, host: str, port: int) -> int:
    from terrace_runtime.api.app import create_app  # noqa: PLC0415 - slow to import
    from terrace_runtime.api.server import run_server  # noqa: PLC0415 - as above
    from terrace_runtime.engine.process import ChildEngine  # noqa: PLC0415 - as above

    try:
        app = create_app(ChildEngine(config, log=relay("engine")), config)
    except ValueError as error:
        raise EndingError(EXIT_BAD_CONFIG, f"trust_key: {error}") from error
    if why := app.state.server.node.refusal:
        raise EndingError(EXIT_HOST_MEMORY, why)
    try:
        ending = run_server(app, host, port)
    except (OSError, OverflowError) as error:
        words = f"cannot listen on {host}:{port}: {getattr(error, 'strerror', '') or error}"
        raise EndingError(EXIT_ADDRESS, words) from error
    if ending.code:
        raise EndingError(ending.code, ending.reason)
    return 0


def _engine(arguments: argparse.Namespace) -> int:
    from terrace_runtime.engine.child import main as run_child  # noqa: PLC0415 - own imports only

    return run_child(arguments.fd)


def _fetch(_: argparse.Namespace) -> int:
    from terrace_runtime.models.commands import run_fetch  # noqa: PLC0415 - own imports only

    log_in_child("fetch")
    return run_fetch()


def _prune(_: argparse.Namespace) -> int:
    from terrace_runtime.models.commands import run_prune  # noqa: PLC0415 - own imports only

    log_in_child("prune")
    return run_prune()


def _inspect(arguments: argparse.Namespace) -> int:
    from terrace_runtime.models.commands import run_inspect  # noqa: PLC0415 - own imports only

    return run_inspect(
        arguments.source,
        arguments.role,
        with_digest=arguments.digest,
        allowed_networks=tuple(arguments.allow_network),
    )


if __name__ == "__main__":
    main()
