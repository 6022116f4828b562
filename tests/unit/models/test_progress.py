"""Progress lines: one a second, with rate and time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.models.progress import ProgressReporter

if TYPE_CHECKING:
    from terrace_runtime.contract import FetchProgress


def test_lines_come_once_a_second_and_at_the_end() -> None:
    now = 0.0
    lines: list[FetchProgress] = []
    reporter = ProgressReporter(lines.append, clock=lambda: now)
    for tenth in range(101):
        now = tenth / 10
        reporter.report("download", tenth * 100, 10_000)
    assert [line.done_bytes for line in lines] == [*range(0, 10_000, 1000), 10_000]
    middle = lines[5]
    assert (middle.bytes_per_second, middle.seconds_left) == (1000, 5)
    assert lines[-1].seconds_left == 0


def test_an_unknown_total_has_no_time_left_and_a_new_stage_speaks_at_once() -> None:
    now = 0.0
    lines: list[FetchProgress] = []
    reporter = ProgressReporter(lines.append, clock=lambda: now)
    reporter.report("download", 10, 0)
    now = 0.1
    reporter.report("verify", 5, 100)
    assert [(line.stage, line.seconds_left) for line in lines] == [
        ("download", None),
        ("verify", None),
    ]


def test_a_stalled_download_shows_as_one() -> None:
    now = 0.0
    lines: list[FetchProgress] = []
    reporter = ProgressReporter(lines.append, clock=lambda: now)
    reporter.beat()
    for second in range(11):
        now = float(second)
        reporter.report("download", second * 100, 10_000)
        reporter.beat()  # Not while bytes come.
    assert len(lines) == 11
    for second in range(11, 60):
        now = float(second)
        reporter.beat()
    assert len(lines) == 60
    assert (lines[-1].done_bytes, lines[-1].bytes_per_second) == (1000, 0)
    assert lines[-1].seconds_left is None
