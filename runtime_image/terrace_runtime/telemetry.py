"""Logs as JSON lines on stdout; never a prompt, an answer, a key or a token in them.

Owns: the set-up of structlog and of the standard library's loggers. Does not own: what is logged.
"""

from __future__ import annotations

import logging
import sys

import structlog

_MAX_CHARS = 2000


def configure_logging(level: int = logging.INFO) -> None:
    """Send all logs to stdout; call once per process."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _bounded,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _bounded(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Cut long values; JSON escapes newlines and control characters by itself."""
    return {
        key: value[:_MAX_CHARS] if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
    }
