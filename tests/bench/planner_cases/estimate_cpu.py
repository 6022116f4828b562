"""estimate-cpu: plans for host memory against llama.cpp's own report, on real shapes.

Owns: which shapes and settings. 69 headers of published models over sparse weights are opened
without memory, and the demo, 150M and 1B models really; each with several contexts.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import terrace_runtime
from bench.allocation import Ask, ask
from bench.estimates import MIB, compared
from bench.models import model_file
from bench.verdict import Metric, absolute
from build.workshop import say
from support.model_shapes import SHAPES, facts, write_header
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from bench.verdict import Line
    from terrace.api.values import KvType
    from terrace_runtime.contract import ModelFacts

METRIC = Metric("estimate-cpu", "% off", 5.0, less_is_better=True)
LEAST_SHAPES = 40
LOADED = ("mid-q8_0", "mid-q4_0", "big-q8_0", "big-q4_0")


def run() -> Line:
    """The worst error, with a row per shape."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SHAPES:
            file = write_header(name, Path(folder) / f"{name}.gguf")
            rows.append(_row(name, facts(name), file, is_real=False))
            file.unlink()
    demo = Path(terrace_runtime.__file__).parent / "demo" / "chat.gguf"
    files = {"demo": demo} | {name: model_file(name) for name in LOADED}
    for name, file in files.items():
        rows.append(_row(f"{name} (loaded)", facts_of(file), file, is_real=True))
    worst = max(rows, key=lambda row: abs(row["worst %"]))
    unsafe = [row["model"] for row in rows if not row["safe"]]
    line = absolute(METRIC, [{METRIC.id: abs(worst["worst %"])}])
    median = statistics.median(abs(row["worst %"]) for row in rows)
    also = f"{len(rows)} models, median {median:.2f} %, worst {worst['model']}"
    if unsafe:
        also += f"; low by more than the margin: {', '.join(unsafe)}"
    return {
        **line,
        "rounds": sum(row["contexts"] for row in rows),
        "ok": line["ok"] and not unsafe and len(rows) >= LEAST_SHAPES,
        "also": also,
        "rows": rows,
    }


def asks_of(known: ModelFacts) -> list[Ask]:
    """Contexts that users ask for, within what the model was trained for."""
    longest = known.context_length
    if known.model_class != "decoder":
        return [Ask(min(512, longest), 1), Ask(min(2048, longest), 1)]
    # This build aborts on Phi-4 with quantised cells in more than one stream: it counts 8 nodes of
    # the graph per tensor, and that file has 6 tensors a layer.
    streams = 1 if known.architecture == "phi3" else 4
    # Latent attention takes its values from the keys.
    values: KvType = "q8_0" if known.architecture in {"deepseek2", "kimi-linear"} else "q4_0"
    return [
        Ask(min(4096, longest), 4),
        Ask(min(1024, longest), 1, ubatch=256),
        Ask(min(16384, longest), min(2, streams), key_type="q8_0", value_type="q8_0"),
        Ask(min(8192, longest), streams, key_type="q8_0", value_type=values, ubatch=128),
        Ask(min(8192, longest), 8, unified=True),
        Ask(min(32768, longest), 1),
    ]


def facts_of(file: Path) -> ModelFacts:
    """What our reader says of a real file."""
    with file.open("rb") as opened:
        return model_facts(read_header(opened, file.stat().st_size), "0" * 64)


def _row(name: str, known: ModelFacts, file: Path, *, is_real: bool) -> Line:
    say(name)
    asks = [each for each in asks_of(known) if not is_real or each.context <= 8192]
    answers = ask(file, asks, is_real=is_real)
    found = [
        (each, compared(known, each, answer)) for each, answer in zip(asks, answers, strict=True)
    ]
    at, worst = max(found, key=lambda pair: abs(pair[1].percent))
    return {
        "model": name,
        "contexts": len(found),
        "worst %": round(worst.percent, 2),
        "at": at.text,
        "planned MiB": round(worst.planned / MIB),
        "llama.cpp MiB": round(worst.reported / MIB),
        "graph alone %": _span([each.graph_percent for _, each in found]),
        "safe": all(each.is_safe for _, each in found),
    }


def _span(values: list[float]) -> str:
    low, high = round(min(values)), round(max(values))
    return f"{low}" if low == high else f"{low} to {high}"
