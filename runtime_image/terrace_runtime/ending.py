"""How a command of the runtime ends: last words for Kubernetes, and an exit code.

Owns: the termination log. Does not own: what went wrong. Next: the operator reads it from the pod.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from terrace_runtime.contract import (
    MAX_TERMINATION_BYTES,
    TERMINATION_LOG,
    TERMINATION_LOG_ENV,
    pod_path,
)

if TYPE_CHECKING:
    from pydantic import ValidationError


class EndingError(Exception):
    """The process has to end; the message is for whoever runs the pod."""

    def __init__(self, code: int, message: str) -> None:
        """``code``: one of the contract's exit codes."""
        super().__init__(message)
        self.code = code


def fail(code: int, message: str) -> int:
    """Tell ``message`` everywhere; returns ``code``."""
    terminate(" ".join(message.split()))
    # Without a set-up of logs, as in a Job, it comes out on stderr as it is.
    logging.getLogger(__name__).critical("%s", message)
    return code


def terminate(message: str) -> None:
    """Leave the last word where Kubernetes looks for it: at most MAX_TERMINATION_BYTES."""
    name = os.environ.get(TERMINATION_LOG_ENV) or TERMINATION_LOG
    path = pod_path(name)
    if path == Path(TERMINATION_LOG) and not path.exists():
        return  # No pod: kubelet makes this file before a container starts.
    data = message.encode("utf-8", "replace")[:MAX_TERMINATION_BYTES]
    try:
        path.write_bytes(data.decode("utf-8", "ignore").encode())
    except OSError as error:
        logging.getLogger(__name__).error("%s cannot be written: %s", name, error)  # noqa: TRY400 - the message says it all


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong with a document, without its values."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "(document)"
    return f"{field}: {first['msg']}"
