"""What `make bench-engine` makes of its rounds, and that it never ends without its lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench.engine import verdict
from bench.load import Round
from build.source import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = ["case", "ours", "peer", "unit", "ratio", "rounds", "target", "ok"]


def _round(speed: float) -> Round:
    """128 tokens at ``speed`` per second; the first after 20 ms, then one each 5 ms."""
    return Round(128 / speed, 128, first_token_s=[0.02], gaps_s=[0.005] * 127)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # A job that slows both sides of the second round does not move the ratio.
    pairs = [(_round(100), _round(100)), (_round(11), _round(10)), (_round(120), _round(100))]
    line = verdict(pairs, target=1.0)
    assert line["ratio"] == 1.1
    assert (line["ours"], line["peer"]) == (100.0, 100.0)
    assert line["ratio_range"] == [1.0, 1.2]
    assert line["rounds"] == 3
    assert line["ok"] is True


@pytest.mark.parametrize(("ours", "is_ok"), [(95.0, True), (94.9, False)])
def test_a_case_is_ok_from_its_target_on(ours: float, *, is_ok: bool) -> None:
    assert verdict([(_round(ours), _round(100))], target=0.95)["ok"] is is_ok


def test_latencies_are_milliseconds() -> None:
    line = verdict([(_round(100), _round(100))], target=1.0)
    assert line["ours_ms"] == {"ttft_p50": 20.0, "ttft_p95": 20.0, "itl_p95": 5.0}


def test_a_case_that_cannot_run_is_printed_with_the_reason(tmp_path: Path) -> None:
    arguments = ("--model", "tiny-q4_0", "--streams", "8", "--quick")
    done = subprocess.run(
        [sys.executable, "-m", "bench.engine", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "tests"),
            "XDG_CACHE_HOME": str(tmp_path),
            "CXX": "/nothing/c++",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert set(REQUIRED) < set(line)
    assert line["case"] == "decode-8/tiny-q4_0"
    assert line["ok"] is False
    assert line["why"].startswith("no C++ compiler found")


def test_an_unknown_number_of_streams_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.engine", "--streams", "3"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--streams: invalid choice: 3 (choose from 1, 4, 8, 16)" in done.stderr
