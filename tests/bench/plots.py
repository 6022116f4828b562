"""The pictures of the report, as small SVG files.

Owns: what is drawn and matplotlib, which only the dependency group ``bench`` brings. Does not own:
the lines (``report.py``). The same lines give the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.verdict import Line

_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "terrace", "font.size": 8}
_MET, _MISSED = "#2a7f62", "#b3402f"


def draw(lines: Sequence[Line], folder: Path) -> list[str]:
    """Draw what there are lines for; returns the names of the files."""
    found = {"engine-targets.svg": _targets(lines), "engine-decode.svg": _decode(lines)}
    with mpl.rc_context(_STYLE):
        for name, figure in found.items():
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
    return [name for name, figure in found.items() if figure is not None]


def _targets(lines: Sequence[Line]) -> Figure | None:
    """How far each case is beyond its target: 1 is the target, to the right is better."""
    scored = [(line["case"], *scores) for line in lines if (scores := _scores(line)) is not None]
    if not scored:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, 0.6 + 0.18 * len(scored)))
        axes = figure.add_subplot()
        for place, (_, value, low, high) in enumerate(reversed(scored)):
            color = _MET if value >= 1 else _MISSED
            axes.plot([low, high], [place, place], color=color, linewidth=1)
            axes.plot(value, place, "o", color=color, markersize=4)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=6)
        axes.set_yticks(range(len(scored)), [name for name, *_ in reversed(scored)])
        axes.set_xlabel("times as good as the target (point: median, line: range of rounds)")
        return figure


def _scores(line: Line) -> tuple[float, float, float] | None:
    value = line["ratio"] if line["ratio"] is not None else line["ours"]
    if not value or not line["target"]:
        return None
    span = line.get("ratio_range") or line.get("ours_range") or [value, value]
    scores = [
        line["target"] / one if line["less_is_better"] else one / line["target"]
        for one in (value, *span)
        if one
    ]
    return scores[0], min(scores), max(scores)


def _decode(lines: Sequence[Line]) -> Figure | None:
    """Decoding against llama-server by number of streams, a curve per model."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        kind, _, model = line["case"].partition("/")
        if model and kind.startswith("decode-") and line["ratio"] is not None:
            streams = int(kind.removeprefix("decode-"))
            curves.setdefault(model, []).append((streams, line["ratio"]))
    if not curves:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5, 3))
        axes = figure.add_subplot()
        for model, points in curves.items():
            points.sort()
            counts = [count for count, _ in points]
            axes.plot(
                counts, [ratio for _, ratio in points], "o-", label=model, markersize=4, linewidth=1
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 4, 8, 16], ["1", "4", "8", "16"])
        axes.set_xlabel("streams")
        axes.set_ylabel("tokens/s, ours by llama-server's best")
        axes.legend(frameon=False)
        return figure
