"""Log lines of operator, gateway and runtime: one JSON object per line on stderr, or plain words.

``lines.py`` (pure) says what a line looks like and how long it may be, ``writer.py`` brings it out
without ever waiting, ``child.py`` reads what a child process says, ``setup.py`` ties the standard
library's loggers and structlog to it. Does not own: what is logged. Only the standard library is
imported here until ``configure_logging``: the engine's process does without structlog.
"""

from terrace_runtime.logs.child import ChildLog
from terrace_runtime.logs.lines import request_id
from terrace_runtime.logs.rate import RateGate
from terrace_runtime.logs.setup import (
    LEVEL_ENV,
    LogOptions,
    add_log_options,
    chosen_options,
    configure_logging,
    flush_log,
    log_in_child,
    relay,
)

__all__ = [
    "LEVEL_ENV",
    "ChildLog",
    "LogOptions",
    "RateGate",
    "add_log_options",
    "chosen_options",
    "configure_logging",
    "flush_log",
    "log_in_child",
    "relay",
    "request_id",
]
