"""How a command of the runtime ends: last words for Kubernetes, and an exit code.

Owns: the termination log. Does not own: what went wrong. Next: the operator reads it from the pod.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from terrace_runtime.contract import MAX_TERMINATION_BYTES, TERMINATION_LOG, pod_path

if TYPE_CHECKING:
    from pydantic import ValidationError


def fail(code: int, message: str) -> int:
    """Tell ``message`` everywhere; returns ``code``."""
    terminate(message)
    sys.stderr.write(message + "\n")
    return code


def terminate(message: str) -> None:
    """Leave the last word where Kubernetes looks for it."""
    try:
        pod_path(TERMINATION_LOG).write_bytes(message.encode()[:MAX_TERMINATION_BYTES])
    except OSError as error:
        sys.stderr.write(f"{TERMINATION_LOG} cannot be written: {error}\n{message}\n")


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong with a document, without its values."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "(document)"
    return f"{field}: {first['msg']}"
