"""The report: a table whose lines may come from several runs, and what is said of misses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.report import read_lines, read_notes, render
from bench.verdict import Metric, absolute, lost, verdict

if TYPE_CHECKING:
    from pathlib import Path

SPEED = Metric("decode-4/mid-q4_0", "tokens/s", 1.0)


def test_the_table_has_a_row_per_case_with_the_other_layout_beside_it() -> None:
    line = verdict(SPEED, [({SPEED.id: 22.0}, {SPEED.id: 20.0})], peer_flags="np-kvu")
    other = verdict(SPEED, [({SPEED.id: 18.0}, {SPEED.id: 20.0})])
    text = render([line, {**other, "case": f"{SPEED.id}@unified"}], [], {})
    (row,) = [row for row in text.splitlines() if row.startswith("| decode")]
    cells = "decode-4/mid-q4_0,22,20,tokens/s,1.1,1.1 to 1.1,1,at least 1,yes,0.9,np-kvu"
    assert row.strip("| ").split(" | ") == cells.split(",")
    assert "1 of 1 targets are met" in text


def test_a_miss_stands_with_its_number_and_what_was_written_about_it() -> None:
    metric = Metric("step-16", "ms/step", 0.2, less_is_better=True)
    text = render([absolute(metric, [{"step-16": 0.25}])], [], {"step-16": "Tried: less."})
    assert "**step-16**: 0.25 instead of 0.2. Tried: less." in text
    assert "| at most 0.2 | **no** |" in text


def test_a_case_that_measured_nothing_says_why() -> None:
    text = render([lost(SPEED, "the server did not start")], ["a.svg"], {})
    assert "the server did not start" in text
    assert "![a.svg](a.svg)" in text


def test_notes_are_read_by_their_headings(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    assert read_notes(path) == {}
    path.write_text("# Notes\n\n## cancel\n\nOne.\n\n## step-16\nTwo\nlines.\n")
    assert read_notes(path) == {"cancel": "One.", "step-16": "Two\nlines."}


def test_lines_of_an_earlier_run_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "engine.jsonl"
    assert read_lines(path) == []
    path.write_text(f"{json.dumps({'case': 'cancel'})}\n")
    assert read_lines(path) == [{"case": "cancel"}]
