"""Whatever is logged, a line is one bounded JSON object and one line of text."""

from __future__ import annotations

import json
import logging
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from terrace_runtime.logs.lines import MAX_LINE_BYTES, fields_of, json_line, text_line

TEXT = st.text(max_size=200) | st.text(st.characters(), max_size=20).map(lambda word: word * 300)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=20)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)
EVENTS = st.dictionaries(st.text(max_size=30), VALUES, max_size=40)


def record(message: Any, *arguments: Any) -> logging.LogRecord:
    return logging.LogRecord("logger", logging.INFO, "file", 1, message, arguments, None)


@settings(deadline=None)
@given(EVENTS)
def test_any_event_is_one_line(event: dict[str, Any]) -> None:
    fields = fields_of(record(event), "runtime")
    line = json_line(fields)
    assert len(line) <= MAX_LINE_BYTES + 1
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    found = json.loads(line)
    assert (found["level"], found["component"], found["logger"]) == ("info", "runtime", "logger")
    text = text_line(fields)
    assert len(text.decode().splitlines()) == 1
    assert len(text) <= MAX_LINE_BYTES + 1


@settings(deadline=None)
@given(TEXT, st.lists(VALUES, max_size=3))
def test_any_words_of_a_library_are_one_line(message: str, arguments: list[Any]) -> None:
    line = json_line(fields_of(record(message, *arguments), "gateway"))
    assert isinstance(json.loads(line)["event"], str)
