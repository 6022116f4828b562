"""Sends every logger of the process through one handler: the standard library's and structlog's.

Owns: options, levels of chatty libraries, crashes and warnings as log lines. Does not own: what a
line looks like (``lines.py``). Call ``configure_logging`` once per process, before anything else;
the engine's child calls ``log_in_child``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from terrace_runtime.logs.child import ChildLog
from terrace_runtime.logs.lines import fields_of, json_line, text_line, timestamp
from terrace_runtime.logs.writer import LineWriter

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from types import TracebackType

Format = Literal["json", "text"]
FORMAT_ENV: Final = "TERRACE_LOG_FORMAT"
LEVEL_ENV: Final = "TERRACE_LOG_LEVEL"
FORMATS: Final = ("json", "text")
LEVELS: Final = ("debug", "info", "warning", "error")
_FLUSH_S: Final = 2.0
_CHATTY: Final = ("asyncio", "uvicorn", "uvicorn.error", "aiohttp.access", "urllib3", "kopf")
"""Heard from warning upwards, unless debug is asked for."""
_INDISCREET: Final = ("kubernetes",)
"""Heard from warning upwards whatever is asked for: it tells whole answers, Secrets too."""


@dataclass(frozen=True)
class LogOptions:
    """How a process logs."""

    format: Format = "json"
    level: str = "info"


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """``--log-format`` and ``--log-level``; ``chosen_options`` reads them."""
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default=None,
        help=f"form of log lines (default: {FORMAT_ENV}; else text on a terminal, json elsewhere)",
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default=None,
        help=f"least level of log lines (default: {LEVEL_ENV}, else info)",
    )


def chosen_options(
    given: argparse.Namespace, environment: Mapping[str, str], *, is_terminal: bool
) -> LogOptions:
    """Arguments before environment before what fits; a wrong word in the environment counts not."""
    own: Format = "text" if is_terminal else "json"
    wanted = given.log_format or environment.get(FORMAT_ENV, "")
    level = given.log_level or environment.get(LEVEL_ENV, "")
    return LogOptions(
        cast("Format", wanted) if wanted in FORMATS else own,
        level if level in LEVELS else "info",
    )


def configure_logging(component: str, options: LogOptions) -> None:
    """All logs to stderr from now on, also what structlog is told, crashes and warnings."""
    import structlog  # noqa: PLC0415 - the engine's process does without

    _install(component, options)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def log_in_child(component: str) -> None:
    """The same as JSON and without structlog: for a ChildLog's child, and for Jobs."""
    level = os.environ.get(LEVEL_ENV, "")
    _install(component, LogOptions("json", level if level in LEVELS else "info"))


def relay(component: str) -> ChildLog:
    """What a child says goes the way of our own lines; needs ``configure_logging`` before."""
    return ChildLog(component, _Handler.current().put)


def flush_log() -> None:
    """Before an end without clean-up: give what is queued a moment."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class _Handler(logging.Handler):
    """Formats in the thread that logs, where the request's id is known; writes without waiting."""

    def __init__(self, component: str, form: Format) -> None:
        super().__init__()
        self._component = component
        self._render: Callable[[dict[str, Any]], bytes] = json_line if form == "json" else text_line
        self._writer = LineWriter(sys.stderr.fileno(), self._dropped)

    @classmethod
    def current(cls) -> _Handler:
        return next(one for one in logging.getLogger().handlers if isinstance(one, cls))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.put(fields_of(record, self._component))
        except Exception:  # noqa: BLE001 - whoever logs is not to fail by it
            self.handleError(record)

    def put(self, fields: dict[str, Any]) -> None:
        self._writer.write(self._render(fields))

    def flush(self) -> None:
        # logging.shutdown calls it at the end of the process.
        self._writer.flush(_FLUSH_S)

    def _dropped(self, count: int) -> bytes:
        fields = {
            "ts": timestamp(time.time()),
            "level": "warning",
            "component": self._component,
            "logger": __name__,
            "event": "log lines were dropped: stderr takes them too slowly",
            "dropped": count,
        }
        return self._render(fields)


def _install(component: str, options: LogOptions) -> None:
    handler = _Handler(component, options.format)
    level = options.level.upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(level if level == "DEBUG" else "WARNING")
    for name in _INDISCREET:
        logging.getLogger(name).setLevel("WARNING")
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash
    sys.unraisablehook = _log_unraisable


def _log_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("crash").critical("crash", exc_info=(kind, error, trace))


def _log_thread_crash(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is None:
        return
    name = given.thread.name if given.thread is not None else ""
    info = (given.exc_type, given.exc_value, given.exc_traceback)
    logging.getLogger("crash").critical("a thread crashed: %s", name, exc_info=info)


def _log_unraisable(given: sys.UnraisableHookArgs) -> None:
    if given.exc_value is None:
        return
    info = (given.exc_type, given.exc_value, given.exc_traceback)
    words = given.err_msg or "Exception ignored in"
    logging.getLogger("crash").warning("%s: %.200r", words, given.object, exc_info=info)
