"""The report of `make bench-engine`: a table, plots, the machine, and the command that makes it.

Owns: the files ``engine.jsonl`` (every line as it was measured), ``engine.md`` and its plots. Does
not own: measuring. Lines of an earlier run that were not measured again stay, so that a long table
can be made in pieces. Why a target is missed and what was tried is written by hand in ``notes.md``
beside it, under a heading that is the case's id; the report quotes it. Usage:
``PYTHONPATH=tests python -m bench.report DIR`` writes the report anew from its lines.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.verdict import significant
from build.source import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.verdict import Line

COMMAND = "make bench-engine LAYOUT=both REPORT=docs/benchmarks"
LINES, REPORT, NOTES = "engine.jsonl", "engine.md", "notes.md"
OTHER_LAYOUT = "@unified"
"""Ends the ids of lines in which ours ran with the KV layout that is not its default."""
_HEAD = (
    f"Made by `{COMMAND}`; how to read it is in [README.md](README.md), every figure in "
    f"[{LINES}]({LINES})."
)
_HEADS = (
    "case",
    "ours",
    "peer",
    "unit",
    "ratio",
    "range",
    "rounds",
    "target",
    "met",
    "unified KV",
    "peer started with",
)


def write_report(lines: Iterable[Line], folder: Path, order: Sequence[str] = ()) -> Path:
    """Merge ``lines`` into the folder's and write everything anew; returns the report.

    ``order`` is that of the table, by id.
    """
    # Imported here: reading lines and making tables does without the library.
    from bench.plots import draw  # noqa: PLC0415 - see above

    folder.mkdir(parents=True, exist_ok=True)
    facts = machine_facts()
    known = {line["case"]: line for line in read_lines(folder / LINES)}
    known |= {line["case"]: {**line, "measured": facts} for line in lines}
    places = {name: place for place, name in enumerate(order)}
    kept = sorted(known.values(), key=lambda line: places.get(base_id(line), len(places)))
    text = "".join(f"{json.dumps(line)}\n" for line in kept)
    (folder / LINES).write_text(text)
    pictures = draw([line for line in kept if line["case"] == base_id(line)], folder)
    notes = read_notes(folder / NOTES)
    (folder / REPORT).write_text(render(kept, pictures, notes))
    return folder / REPORT


def base_id(line: Line) -> str:
    """The id of a line without its layout."""
    name: str = line["case"]
    return name.removesuffix(OTHER_LAYOUT)


def read_lines(path: Path) -> list[Line]:
    """The lines of an earlier report; none where there is none."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def read_notes(path: Path) -> dict[str, str]:
    """Text by case id, from a file with a second-level heading for each."""
    notes: dict[str, str] = {}
    for section in path.read_text().split("\n## ")[1:] if path.exists() else ():
        name, _, text = section.partition("\n")
        notes[name.strip()] = text.strip()
    return notes


def render(lines: Sequence[Line], pictures: Sequence[str], notes: Mapping[str, str]) -> str:
    """The report as Markdown."""
    by_id = {line["case"]: line for line in lines}
    shown = [line for line in lines if line["case"] == base_id(line)]
    rows = [_row(line, by_id.get(line["case"] + OTHER_LAYOUT)) for line in shown]
    missed = [line for line in shown if not line["ok"]]
    parts = [
        "# The engine against llama-server",
        _HEAD,
        *_machines(lines),
        f"{len(shown) - len(missed)} of {len(shown)} targets are met.",
        "\n".join([_cells(_HEADS), _cells(["---"] * len(_HEADS)), *rows]),
        *(f"![{name}]({name})" for name in pictures),
    ]
    if missed:
        parts += ["## Missed", *(_missed(line, notes) for line in missed)]
    return "\n\n".join(parts) + "\n"


def machine_facts() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _commit(),
        "cpu": f"{len(os.sched_getaffinity(0))} x {_from_proc('cpuinfo', 'model name')}",
        "memory": _from_proc("meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "llama-cpp-python": importlib.metadata.version("llama-cpp-python"),
    }


def _machines(lines: Sequence[Line]) -> list[str]:
    """One line per different machine or day."""
    found = dict.fromkeys(json.dumps(line.get("measured", {})) for line in lines)
    facts = [json.loads(text) for text in found]
    told = [", ".join(f"{name} {value}" for name, value in one.items()) for one in facts]
    return ["\n".join(f"- measured on: {one}" for one in told if one)]


def _row(line: Line, other: Line | None) -> str:
    name = f"{line['case']} (a glance)" if line.get("quick") else line["case"]
    span = line.get("ratio_range") or line.get("ours_range") or []
    beside = None if other is None else _reached(other)
    cells = [
        name,
        _number(line["ours"]),
        _number(line["peer"]),
        line["unit"],
        _number(line["ratio"]),
        " to ".join(_number(value) for value in span),
        str(line["rounds"]),
        f"{'at most' if line['less_is_better'] else 'at least'} {line['target']:g}",
        "yes" if line["ok"] else "**no**",
        _number(beside),
        str(line.get("peer_flags", "")),
    ]
    return _cells(cells)


def _missed(line: Line, notes: Mapping[str, str]) -> str:
    why = line.get("why") or notes.get(line["case"], "Nothing is written about it yet.")
    return f"**{line['case']}**: {_number(_reached(line))} instead of {line['target']:g}. {why}"


def _reached(line: Line) -> float | None:
    """What is held to the target."""
    value: float | None = line["ours"] if line["ratio"] is None else line["ratio"]
    return value


def _cells(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{significant(value):g}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _from_proc(file: str, key: str) -> str:
    for line in Path(f"/proc/{file}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def main() -> None:
    """Write the report of a folder anew."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    print(write_report([], parser.parse_args().folder))


if __name__ == "__main__":
    main()
