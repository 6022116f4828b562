"""What a log line looks like: one JSON object, bounded, without what must not be in it."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest

from terrace_runtime.logs.lines import (
    MAX_LINE_BYTES,
    fields_of,
    json_line,
    request_id,
    text_line,
    timestamp,
)


def record(msg: Any, *args: Any, level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    return logging.LogRecord(
        "a.logger", level, "file.py", 1, msg, args, **{"exc_info": None} | more
    )


def parsed(msg: Any, *args: Any, **more: Any) -> dict[str, Any]:
    line = json_line(fields_of(record(msg, *args, **more), "runtime"))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert len(line) <= MAX_LINE_BYTES + 1
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_has_time_level_component_logger_and_event_first() -> None:
    found = parsed({"event": "ready", "build": "b-1", "count": 3})
    assert list(found) == ["ts", "level", "component", "logger", "event", "build", "count"]
    assert found["level"] == "info"
    assert found["component"] == "runtime"
    assert found["logger"] == "a.logger"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["ts"])


def test_a_moment_is_rfc_3339_in_utc() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"


def test_a_field_that_is_called_as_one_of_ours_does_not_replace_it() -> None:
    found = parsed({"event": "e", "level": 7, "ts": "never", "component": "evil"})
    assert (found["level"], found["component"]) == ("info", "runtime")
    assert (found["level_"], found["ts_"], found["component_"]) == (7, "never", "evil")


def test_words_of_other_libraries_become_the_event() -> None:
    assert parsed("%s took %d", "it", 3, level=logging.WARNING)["event"] == "it took 3"
    assert parsed("%d", "no number")["event"] == "%d (its arguments do not fit)"


def test_a_request_id_is_on_every_line_of_its_task() -> None:
    token = request_id.set("job-7")
    try:
        assert parsed("words")["request_id"] == "job-7"
        assert parsed({"event": "e", "request_id": "own"})["request_id"] == "own"
    finally:
        request_id.reset(token)
    assert "request_id" not in parsed("words")


def test_a_traceback_is_one_line_and_keeps_both_ends() -> None:
    def dive(depth: int) -> None:
        if depth:
            dive(depth - 1)
        raise ValueError("the bottom" + "x" * depth)

    try:
        dive(100)
    except ValueError as error:
        found = parsed({"event": "crash", "exc_info": True})
        by_value = parsed({"event": "crash", "exc_info": error})
        by_record = parsed("crash", exc_info=sys.exc_info())
    for each in (found, by_value, by_record):
        assert each["exception"].startswith("Traceback")
        assert each["exception"].endswith("ValueError: the bottom")
        assert len(each["exception"]) <= 8008


@pytest.mark.parametrize(
    "hostile",
    [
        "two\nlines",
        "\x1b[2Jcleared",
        "sep\u2028arator\x85",
        "\udcff half a pair",
        "\u202eright to left",
        "\x00",
        '", "level": "error',
    ],
)
def test_no_text_can_break_out_of_its_line(hostile: str) -> None:
    found = parsed({"event": hostile, "path": hostile})
    assert found["event"] == hostile
    assert found["level"] == "info"
    text = text_line(fields_of(record({"event": hostile, "path": hostile}), "runtime"))
    assert text.count(b"\n") == 1
    assert len(text.decode().splitlines()) == 1
    assert b"\x1b" not in text


def test_long_values_are_cut_and_long_lines_say_so() -> None:
    assert len(parsed({"event": "x" * 10_000})["event"]) == 2003
    many = parsed({"event": "e", **{f"field{n}": "y" * 1900 for n in range(100)}})
    assert many["truncated"] is True
    assert many["event"] == "e"
    assert len(many["field0"]) == 400
    astral = parsed({"event": "\U0001f600" * 5000, "status": 7})
    assert astral["truncated"] is True
    assert astral["status"] == 7


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        10**400,
        object(),
        {1, 2},
        b"bytes",
        {"a": object()},
        [float("nan")],
    ],
)
def test_values_that_json_lacks_do_not_lose_the_line(value: Any) -> None:
    found = parsed({"event": "e", "value": value, "status": 200})
    assert found["event"] == "e"
    assert found["status"] == 200


@pytest.mark.parametrize(
    "words",
    [
        "Authorization: Bearer hunter2",
        "sent authorization='hunter2' to them",
        "bearer hunter2",
        "api_key=hunter2&x=1",
        "https://user:hunter2@host/path",
        '{"x-api-key": "hunter2"}',
    ],
)
def test_credentials_are_removed(words: str) -> None:
    assert "hunter2" not in json.dumps(parsed(words))
    assert "hunter2" not in json.dumps(parsed({"event": "e", "note": words}))


def test_fields_that_are_named_after_secrets_are_removed() -> None:
    found = parsed({"event": "e", "api_key": "hunter2", "Cookie": "hunter2", "tokens": 5})
    assert found["api_key"] == found["Cookie"] == "[removed]"
    assert found["tokens"] == 5


def test_text_for_a_person_has_the_same_fields() -> None:
    said = {"event": "ready", "build": "b-1", "note": "two words", "count": 3}
    line = text_line(fields_of(record(said, level=logging.WARNING), "gateway")).decode()
    assert re.fullmatch(
        r'[\d\-T:.]+Z WARNING  gateway: ready build=b-1 note="two words" count=3\n', line
    )


def test_a_traceback_for_a_person_is_indented() -> None:
    try:
        int("no")
    except ValueError:
        line = text_line(fields_of(record("crash", exc_info=sys.exc_info()), "runtime")).decode()
    first, *rest = line.splitlines()
    assert first.endswith("crash")
    assert all(row.startswith("  ") for row in rest)
    assert rest[-1].startswith("  ValueError: invalid literal")
