"""What a log line looks like: its fields, its bounds, and what must never be in it. Pure.

Owns: the two forms (JSON and text), lengths, the removal of credentials. Does not own: where lines
go (``writer.py``) or who logs (``setup.py``). The standard library's JSON encoder is used as it is
on purpose: it escapes everything that is not plain ASCII, so no text of a client's can end a line,
move a terminal's cursor or break a collector.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that this task works on; every line that the task logs carries it."""

MAX_LINE_BYTES: Final = 16 * 1024
_MAX_VALUE: Final = 2000
_MAX_TRACEBACK: Final = 8000
_SHORT_VALUE: Final = 400
_FIRST: Final = ("ts", "level", "component", "logger", "event", "request_id")
_SECRET_NAMES: Final = re.compile(
    r"authorization|api[-_]?key|password|secret|cookie|credential|bearer", re.IGNORECASE
)
_SECRET_WORDS: Final = re.compile(
    r"(?i)\b((?:authorization|x-api-key|api[-_]?key|password)[\"']?\s*[:=]\s*[\"']?"
    r"(?:(?:bearer|basic)\s+)?|bearer\s+)[^\s\"',;&]+"
)
_SUSPICIOUS: Final = re.compile(r"(?i)bearer|authorization|api[-_]?key|password|://[^\s/@]+@")
"""Cheap to look for; few lines have any of it."""
_USER_INFO: Final = re.compile(r"(?<=://)[^/\s@]+@")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord, component: str) -> dict[str, Any]:
    """All that ``record`` says. structlog hands a dict over, everybody else words and arguments."""
    if isinstance(record.msg, dict):
        said = dict(record.msg)
        exc_info = said.pop("exc_info", None)
        info = _exc_info(exc_info) if exc_info else record.exc_info
    else:
        said = {"event": _message(record)}
        more = {k: v for k, v in vars(record).items() if k not in _STANDARD and k[0] != "_"}
        said |= {k: v for k, v in more.items() if isinstance(v, str | int | float | dict)}
        info = record.exc_info
    first = {
        "ts": timestamp(record.created),
        "level": record.levelname.lower(),
        "component": component,
        "logger": record.name,
        "event": str(said.pop("event", "")),
    }
    if current := said.pop("request_id", None) or request_id.get():
        first["request_id"] = current
    last = {"exception": _traceback(info)} if info and info[1] is not None else {}
    # A field of somebody's that is called as one of ours keeps its value under another name.
    own = {f"{key}_" if key in first or key in last else key: said[key] for key in said}
    return {key: _bounded(key, value) for key, value in {**first, **own, **last}.items()}


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, in microseconds."""
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def json_line(fields: dict[str, Any]) -> bytes:
    """One line of at most MAX_LINE_BYTES; what does not fit is left out, and it says so."""
    line = _encoded(fields)
    if len(line) <= MAX_LINE_BYTES:
        return line
    kept = {key: _short(fields[key]) for key in _FIRST if key in fields} | {"truncated": True}
    for key, value in fields.items():
        longer = kept if key in kept else {**kept, key: _short(value)}
        if longer is not kept and len(_encoded(longer)) <= MAX_LINE_BYTES:
            kept = longer
    return _encoded(kept)


def text_line(fields: dict[str, Any]) -> bytes:
    """The same for a person at a terminal; a traceback follows on lines of its own."""
    head = f"{fields.get('ts', '')} {str(fields.get('level', '')).upper():<8} "
    words = _printable(str(fields.get("event", "")))
    skipped = {*_FIRST[:-1], "exception"}
    pairs = [
        f"{_printable(key)}={_shown(value)}" for key, value in fields.items() if key not in skipped
    ]
    line = " ".join([f"{_printable(head + str(fields.get('component', '')))}: {words}", *pairs])
    if exception := fields.get("exception"):
        rows = [_printable(row) for row in str(exception).splitlines()]
        line = "\n  ".join([line, *rows])
    data = line.encode("utf-8", "replace")
    return data[:MAX_LINE_BYTES].decode("utf-8", "ignore").encode() + b"\n"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - whatever the arguments' __str__ raises must not end the line
        return f"{record.msg} (its arguments do not fit)"


def _exc_info(given: Any) -> Any:
    if isinstance(given, BaseException):
        return (type(given), given, given.__traceback__)
    return given if isinstance(given, tuple) else sys.exc_info()


def _traceback(info: Any) -> str:
    text = "".join(traceback.format_exception(*info)).rstrip()
    if len(text) <= _MAX_TRACEBACK:
        return text
    half = _MAX_TRACEBACK // 2
    return f"{text[:half]}\n...\n{text[-half:]}"


def _bounded(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if _is_secret(key):
        return "[removed]"
    limit = _MAX_TRACEBACK + 8 if key == "exception" else _MAX_VALUE
    if len(value) > limit:
        value = f"{value[:limit]}..."
    if _SUSPICIOUS.search(value):
        value = _USER_INFO.sub("", _SECRET_WORDS.sub(r"\1[removed]", value))
    return value


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return _SECRET_NAMES.search(key) is not None


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(fields, allow_nan=False, default=_other)
    except (TypeError, ValueError, RecursionError):
        plain = {str(key): _plain(value) for key, value in fields.items()}
        text = json.dumps(plain)
    return text.encode("ascii") + b"\n"


def _other(value: object) -> str:
    return str(value)[:_MAX_VALUE]


def _plain(value: Any) -> Any:
    is_number = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if value is None or is_number else str(value)[:_MAX_VALUE]


def _short(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else str(value)[:_SHORT_VALUE]


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return _printable(json.dumps(value, default=_other))
    return value if re.fullmatch(r"[!-~]+", value) and '"' not in value else json.dumps(value)


def _printable(text: str) -> str:
    """Without anything that moves a cursor or looks like another line."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text)
