"""`make bench-planner`: memory plans against llama.cpp's own report and real replicas, by id.

Owns: the ids, running the cases one after another, that every line is there, and the report. Does
not own: what a case measures (a module of ``planner_cases`` each, with ``METRIC`` and ``run()``).
One JSON object per case and line on stdout, progress on stderr. Exits 1 when a case measured
nothing or misses its target.
Usage: ``python -m bench.planner [--cases ID,...] [--report DIR]``
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.planner_report import write_report
from bench.verdict import Metric, lost
from build.workshop import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.verdict import Line

IDS: Final = (
    "estimate-cpu",
    "estimate-device",
    "estimate-projector",
    "limit",
    "long-context",
    "plan-1000",
)
"""A case without a module is a case that measured nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per id."""
    # As an interrupt, so that all servers are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="planner.py", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="*", metavar="ID,...", help=", ".join(IDS))
    parser.add_argument("--report", type=Path, metavar="DIR", help="write planner.md there")
    given = parser.parse_args(arguments)
    lines = []
    for name in chosen(given.cases):
        say(name)
        line = run_case(name)
        print(json.dumps({key: value for key, value in line.items() if key != "rows"}), flush=True)
        lines.append(line)
    if given.report:
        say(f"the report is {write_report(lines, given.report, IDS)}")
    bad = [line["case"] for line in lines if not line["ok"]]
    if bad:
        sys.exit(f"error: missed or not measured: {', '.join(bad)}")


def chosen(patterns: str) -> list[str]:
    """The ids that ``patterns`` name, in the order of IDS."""
    wanted = patterns.split(",")
    for pattern in wanted:
        if not any(fnmatch.fnmatch(name, pattern) for name in IDS):
            sys.exit(f"error: --cases {pattern}: no such case; there are {', '.join(IDS)}")
    return [name for name in IDS if any(fnmatch.fnmatch(name, each) for each in wanted)]


def run_case(name: str) -> Line:
    """The line of one id, whatever happens."""
    module = f"bench.planner_cases.{name.replace('-', '_')}"
    try:
        case = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return lost(Metric(name, "", 0.0), f"there is no {module}")
    try:
        line: Line = case.run()
    except RuntimeError as error:
        return lost(case.METRIC, str(error))
    assert line["case"] == name, line
    return line


if __name__ == "__main__":
    main()
