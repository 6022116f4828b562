"""Words of a child process and of llama.cpp as log lines; options; bounds on the talkative."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest

from terrace_runtime.backend.llamalog import LlamaLines
from terrace_runtime.logs import ChildLog, LogOptions, RateGate, add_log_options, chosen_options
from terrace_runtime.logs.lines import MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping


def said_by_a_child(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    log = ChildLog("engine", found.append)
    with log.pipe() as fd, os.fdopen(os.dup(fd), "wb") as stream:
        stream.write(data)
    log.join(60)
    return found


def test_log_lines_of_a_child_pass_and_its_other_words_become_lines() -> None:
    found = said_by_a_child(
        b'{"ts": "t", "level": "error", "event": "mine"}\n'
        b'GGML_ASSERT(x) failed\n\n{"ts": broken\nend'
    )
    assert found[0] == {"ts": "t", "level": "error", "event": "mine"}
    assert [one["event"] for one in found[1:]] == ["GGML_ASSERT(x) failed", '{"ts": broken', "end"]
    assert {(one["level"], one["component"], one["logger"]) for one in found[1:]} == {
        ("warning", "engine", "stderr")
    }


def test_a_child_that_never_ends_a_line_is_bounded() -> None:
    found = said_by_a_child(b"x" * (5 * MAX_LINE_BYTES) + b"\xff\n")
    assert len(found) <= 6
    assert all(len(one["event"]) <= MAX_LINE_BYTES for one in found)


def test_a_child_that_says_too_much_is_cut_short() -> None:
    found = said_by_a_child(b"again\n" * 5000)
    assert 200 <= len(found) < 1000


def test_a_gate_lets_a_burst_through_and_counts_the_rest() -> None:
    now = 0.0
    gate = RateGate(lambda: now, burst=2, per_second=1.0)
    assert [gate.admits() for _ in range(4)] == [True, True, False, False]
    now = 1.0
    assert gate.admits()
    assert gate.take_held_back() == 2
    assert gate.take_held_back() == 0
    now = 1000.0
    assert [gate.admits() for _ in range(3)] == [True, True, False]


def lines_of_llama(
    caplog: pytest.LogCaptureFixture, level: int, *messages: tuple[int, str]
) -> list[tuple[str, str]]:
    with caplog.at_level(level, "llama.cpp"):
        lines = LlamaLines(lambda: 0.0)
        for message in messages:
            lines.add(*message)
    return [(one.levelname, one.getMessage()) for one in caplog.records]


def test_pieces_and_many_lines_of_llama_cpp_become_single_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = lines_of_llama(
        caplog,
        logging.DEBUG,
        (2, "load: one\nload: two\n"),
        (2, "dots "),
        (5, "... "),
        (5, "done\n"),
        (3, "careful"),
        (4, "failed: "),
        (5, "why\n"),
        (1, "\n"),
        (0, "table\n"),
    )
    assert found == [
        ("INFO", "load: one"),
        ("INFO", "load: two"),
        ("INFO", "dots ... done"),
        ("WARNING", "careful"),
        ("ERROR", "failed: why"),
        ("DEBUG", "table"),
    ]


def test_what_llama_cpp_tells_while_loading_is_for_debugging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = lines_of_llama(caplog, logging.INFO, (2, "n_layer = 3\n"), (3, "odd\n"), (4, "bad\n"))
    assert found == [("WARNING", "odd"), ("ERROR", "bad")]


def test_llama_cpp_in_a_loop_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    assert len(lines_of_llama(caplog, logging.INFO, *[(4, "again\n")] * 5000)) == 2000


@pytest.mark.parametrize(
    ("arguments", "environment", "is_terminal", "expected"),
    [
        ([], {}, False, LogOptions("json", "info")),
        ([], {}, True, LogOptions("text", "info")),
        ([], {"TERRACE_LOG_FORMAT": "json", "TERRACE_LOG_LEVEL": "debug"}, True,
         LogOptions("json", "debug")),
        (["--log-format", "text", "--log-level", "error"],
         {"TERRACE_LOG_FORMAT": "json", "TERRACE_LOG_LEVEL": "debug"}, False,
         LogOptions("text", "error")),
        ([], {"TERRACE_LOG_FORMAT": "xml", "TERRACE_LOG_LEVEL": "LOUD"}, False,
         LogOptions("json", "info")),
    ],
)  # fmt: skip
def test_arguments_come_before_the_environment(
    arguments: list[str], environment: Mapping[str, str], *, is_terminal: bool, expected: LogOptions
) -> None:
    parser = argparse.ArgumentParser()
    add_log_options(parser)
    given = parser.parse_args(arguments)
    assert chosen_options(given, environment, is_terminal=is_terminal) == expected
