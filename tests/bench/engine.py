"""`make bench-engine`: our runtime against llama-server, every case of the table by its id.

Owns: the options, running the cases one after another, that every line is there. Does not own: the
cases (``cases``), how rounds are compared (``comparison.py``), the report (``report.py``). One JSON
object per case and line on stdout, progress on stderr. Exits 1 when a case measured nothing; a
target that is missed is a result.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.util
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.comparison import Options
from bench.report import OTHER_LAYOUT, write_report
from build.workshop import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.cases.case import Case
    from bench.verdict import Line

FAMILIES = ("decode", "sharing", "prefill", "tiers", "speculation", "core")


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    families = [importlib.import_module(f"bench.cases.{name}") for name in FAMILIES]
    return [case for family in families for case in family.CASES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per id."""
    # As an interrupt, so that all servers are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = _parser().parse_args(arguments)
    if given.report and not importlib.util.find_spec("matplotlib"):
        sys.exit("error: --report draws with matplotlib: make bench-engine REPORT=DIR gets it")
    options = Options(
        rounds=given.rounds or (1 if given.quick else 5),
        is_quick=given.quick,
        limit_s=given.limit or (60 if given.quick else 420),
        is_against_itself=given.against_itself,
    )
    cases = _chosen(given.cases, is_quick=given.quick)
    layouts = {"auto": (False,), "unified": (True,), "both": (False, True)}[given.layout]
    lines: list[Line] = []
    is_interrupted = False
    try:
        for line in _lines(cases, options, layouts):
            print(json.dumps(line), flush=True)
            lines.append(line)
    except KeyboardInterrupt:
        is_interrupted = True
    if given.report and lines:
        order = [name for case in all_cases() for name in case.ids]
        say(f"the report is {write_report(lines, given.report, order)}")
    if is_interrupted:
        sys.exit("interrupted; what was measured until then stands")
    missing = [line["case"] for line in lines if line["ours"] is None]
    if missing:
        sys.exit(f"error: nothing measured for {', '.join(missing)}")


def _lines(cases: Sequence[Case], options: Options, layouts: Sequence[bool]) -> Iterator[Line]:
    for case in cases:
        for is_unified in layouts:
            end = OTHER_LAYOUT if is_unified else ""
            say(f"{' '.join(case.ids)}{end}")
            found = {
                line["case"]: {**line, "case": line["case"] + end, "quick": options.is_quick}
                for line in case.run(replace(options, is_unified=is_unified))
            }
            assert tuple(found) == case.ids, f"{case.ids} printed {tuple(found)}"
            yield from found.values()


def _chosen(patterns: str, *, is_quick: bool) -> list[Case]:
    wanted = patterns.split(",") if patterns else ["*"]
    cases = all_cases()
    for pattern in wanted:
        if not any(_names(case, pattern) for case in cases):
            ids = ", ".join(name for case in cases for name in case.ids)
            sys.exit(f"error: --cases {pattern}: no such case; there are {ids}")
    return [
        case
        for case in cases
        if any(_names(case, pattern) for pattern in wanted)
        and (patterns or case.is_in_quick or not is_quick)
    ]


def _names(case: Case, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in case.ids)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench-engine",
        description="Our runtime against llama-server on this machine. Builds llama-server first "
        "(about 5 minutes, once) and writes models of random weights (about 3 GB).",
    )
    parser.add_argument("--quick", action="store_true", help="one round, small counts")
    parser.add_argument(
        "--cases", default="", metavar="IDS", help="only these: ids or patterns, with commas"
    )
    parser.add_argument("--rounds", type=_count, help="rounds per case (5; quick: 1)")
    parser.add_argument(
        "--limit",
        type=_count,
        metavar="SECONDS",
        help="no new round of a case begins after this long (420; quick: 60)",
    )
    parser.add_argument(
        "--layout",
        choices=("auto", "unified", "both"),
        default="auto",
        help=f"KV layout of ours; lines of the other one end with {OTHER_LAYOUT}",
    )
    parser.add_argument(
        "--against-itself",
        action="store_true",
        help="llama-server on both sides: what differs then is this machine's noise",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write the report and its plots into DIR"
    )
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


if __name__ == "__main__":
    main()
