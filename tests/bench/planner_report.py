"""The planner's figures as Markdown, kept beside the JSON lines that they come from.

Owns: planner.jsonl and planner.md. Does not own: measuring (``planner_cases``). Cases that were not
run keep the line of an earlier report.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.report import machine_facts, read_lines, read_notes
from bench.verdict import significant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.verdict import Line

LINES, REPORT, NOTES = "planner.jsonl", "planner.md", "planner-notes.md"
_HEAD = """\
Written by `make bench-planner REPORT=docs/benchmarks`; text by hand is in `planner-notes.md`.
Errors are (plan - llama.cpp) / llama.cpp of the total in percent: above zero the plan is larger."""


def write_report(lines: Sequence[Line], folder: Path, order: Sequence[str]) -> Path:
    """Merge ``lines`` into the folder's report; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {line["case"]: line for line in read_lines(folder / LINES)}
    known |= {line["case"]: {**line, "measured": machine_facts()} for line in lines}
    kept = [known[name] for name in order if name in known]
    (folder / LINES).write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    notes = read_notes(folder / NOTES)
    (folder / REPORT).write_text(render(kept, notes))
    return folder / REPORT


def render(lines: Sequence[Line], notes: dict[str, str]) -> str:
    """The report as Markdown."""
    parts = ["# The planner's estimates", _HEAD, _table(_HEADS, [_summary(line) for line in lines])]
    for line in lines:
        parts.append(f"## {line['case']}")
        if line["case"] in notes:
            parts.append(notes[line["case"]])
        facts = ", ".join(f"{name} {value}" for name, value in line.get("measured", {}).items())
        parts.append(f"Measured on: {facts}.")
        if rows := line.get("rows"):
            parts.append(_table(list(rows[0]), [list(map(_text, row.values())) for row in rows]))
    return "\n\n".join(parts) + "\n"


_HEADS = ["case", "ours", "peer", "unit", "rounds", "target", "ok", "also"]


def _summary(line: Line) -> list[str]:
    return [
        line["case"],
        _text(line["ours"]),
        _text(line["peer"]),
        line["unit"],
        str(line["rounds"]),
        f"{'at most' if line['less_is_better'] else 'at least'} {line['target']:g}",
        "yes" if line["ok"] else "**no**",
        " ".join(str(line.get("also") or line.get("why") or "").split()),
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{significant(value):g}" if isinstance(value, float) else str(value)
