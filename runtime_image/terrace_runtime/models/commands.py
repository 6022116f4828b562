"""``fetch``, ``inspect`` and ``prune`` as commands: their input, output and exit codes.

Owns: environment variables, what goes to stdout and stderr, and that no secret does. Does not own:
the work (``fetch``, ``inspect_source``, ``prune``) or last words (``ending``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import stamina
from pydantic import ValidationError

from terrace_runtime.contract import (
    EXIT_BAD_CONFIG,
    EXIT_PERMANENT,
    MAX_TERMINATION_BYTES,
    FetchSpec,
    PruneSpec,
)
from terrace_runtime.ending import fail, first_error, terminate
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.fetch import fetch
from terrace_runtime.models.fit import message
from terrace_runtime.models.inspect_source import Question, inspect_source
from terrace_runtime.models.progress import ProgressReporter
from terrace_runtime.models.prune import prune
from terrace_runtime.models.secrets import Secrets, read_secrets
from terrace_runtime.models.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from stamina.instrumentation import RetryDetails

    from terrace_runtime.contract import FetchOutcome, FetchProgress, FileRole, PruneOutcome

# In a Job these are JSON lines; by hand, where no logs are set up, plain words on stderr.
_LOG = logging.getLogger(__name__)


def run_fetch() -> int:
    """Do what TERRACE_FETCH says; the termination message is the FetchOutcome."""
    try:
        spec = FetchSpec.model_validate_json(os.environ.get("TERRACE_FETCH", ""))
    except ValidationError as error:
        return fail(EXIT_BAD_CONFIG, f"TERRACE_FETCH is not a FetchSpec: {first_error(error)}")
    reporter = ProgressReporter(_print_progress)
    _tell_retries(_known(lambda: read_secrets(spec.secret_dir)), reporter.repeat)
    # As process 1 of a container we get no default action. What is downloaded so far is kept.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    outcome = asyncio.run(fetch(Work(spec, reporter)))
    terminate(message(outcome, MAX_TERMINATION_BYTES))
    return _said(outcome)


def run_inspect(
    source: str, role: FileRole, *, with_digest: bool, allowed_networks: tuple[str, ...]
) -> int:
    """Print facts, or a FetchOutcome with its failure; stdout holds nothing else."""
    question = Question(source, role, with_digest, allowed_networks, os.environ)
    _tell_retries(_known(question.secrets))
    outcome = asyncio.run(inspect_source(question))
    facts = outcome.facts or outcome.projector or outcome.file
    if facts is not None:
        sys.stdout.write(facts.model_dump_json(indent=2) + "\n")
        return 0
    sys.stdout.write(outcome.model_dump_json(exclude_defaults=True) + "\n")
    return _said(outcome)


def run_prune() -> int:
    """Do what TERRACE_PRUNE says; stdout and the termination message are the PruneOutcome."""
    try:
        spec = PruneSpec.model_validate_json(os.environ.get("TERRACE_PRUNE", ""))
    except ValidationError as error:
        return fail(EXIT_BAD_CONFIG, f"TERRACE_PRUNE is not a PruneSpec: {first_error(error)}")
    outcome = prune(spec, time.time())
    line = outcome.model_dump_json(exclude_defaults=True)
    sys.stdout.write(line + "\n")
    terminate(line)
    return _said(outcome)


def _said(outcome: FetchOutcome | PruneOutcome) -> int:
    """The exit code of an outcome, its failure told."""
    if outcome.failure is None:
        return 0
    _LOG.error("%s: %s", outcome.failure.reason, outcome.failure.message)
    return EXIT_PERMANENT if outcome.failure.permanent else 1


def _print_progress(progress: FetchProgress) -> None:
    sys.stdout.write(progress.model_dump_json() + "\n")
    sys.stdout.flush()


def _tell_retries(secrets: Secrets, after: Callable[[], None] = lambda: None) -> None:
    """Say on stderr why something is tried again; the library itself would write to stdout."""

    def on_retry(details: RetryDetails) -> None:
        why = secrets.hide(str(details.caused_by))
        _LOG.warning("%s; next try in %.0f s", why, details.wait_for)
        after()

    stamina.instrumentation.set_on_retry_hooks([on_retry])


def _known(read: Callable[[], Secrets]) -> Secrets:
    try:
        return read()
    except FetchError:
        return Secrets()  # The work itself says what is wrong with them.
