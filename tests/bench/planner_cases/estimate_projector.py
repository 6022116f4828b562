"""estimate-projector: plans for a projector against libmtmd's own report, on published shapes.

Owns: which shapes, and the model whose vocabulary a projector needs. Weights are holes in sparse
files. Held to the target is the sum of weights and the graph's buffer, as libmtmd tells it; safe is
a plan that is no smaller than the anonymous memory that opening it and encoding an image took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gguf

from bench.verdict import Metric, absolute
from build.workshop import say
from support.planning import MIB
from support.projector_files import (
    GEMMA_3_4B,
    LLAVA_15,
    PLACED,
    QWEN2_VL_7B,
    QWEN3_VL_8B,
    QWEN25_VL_7B,
    SMOLVLM_500M,
    projector_file,
)
from support.tiny_model import byte_vocabulary
from terrace.planner.projector import graph_bytes, projector_bytes
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.projector import projector_facts

if TYPE_CHECKING:
    from bench.verdict import Line
    from support.projector_files import ProjectorShape

METRIC = Metric("estimate-projector", "% off", 5.0, less_is_better=True)
SHAPES: Final = {
    "smolvlm-500m": SMOLVLM_500M,
    "llava-1.5": LLAVA_15,
    "gemma-3-4b": GEMMA_3_4B,
    "qwen2-vl-7b": QWEN2_VL_7B,
    "qwen2.5-vl-7b": QWEN25_VL_7B,
    "qwen3-vl-8b": QWEN3_VL_8B,
}
TIMEOUT_S: Final = 600.0


def run() -> Line:
    """The worst error, with a row per shape."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [_row(Path(folder), name, shape) for name, shape in SHAPES.items()]
    worst = max(rows, key=lambda row: abs(row["off %"]))
    line = absolute(METRIC, [{METRIC.id: abs(worst["off %"])}])
    unsafe = [row["projector"] for row in rows if not row["safe"]]
    also = f"{len(rows)} projectors, worst {worst['projector']}"
    also += f"; planned less than was taken: {', '.join(unsafe)}" if unsafe else ""
    return {
        **line,
        "rounds": len(rows),
        "ok": line["ok"] and not unsafe,
        "also": also,
        "rows": rows,
    }


def _row(folder: Path, name: str, shape: ProjectorShape) -> Line:
    say(name)
    file = projector_file(folder / f"{name}.gguf", shape)
    with file.open("rb") as opened:
        facts = projector_facts([read_header(opened, file.stat().st_size)], "0" * 64)
    is_placed = shape.kind in PLACED
    vocabulary = _vocabulary(folder / f"{name}-text.gguf", facts.output_length)
    command = [sys.executable, "-m", "bench.projector_child", str(file), str(vocabulary)]
    child = subprocess.run(
        [*command, *(["224", "224", str(facts.max_rows)] if is_placed else ["500", "500", "0"])],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if child.returncode:
        raise RuntimeError(f"{name}: {child.stderr.strip()[-500:]}")
    told, plan = json.loads(child.stdout), projector_bytes(facts)
    ours, theirs = plan.weights + graph_bytes(facts), plan.weights + told["compute_bytes"]
    return {
        "projector": name,
        "off %": round(100 * (ours - theirs) / theirs, 2),
        "weights MiB": round(plan.weights / MIB, 1),
        "graph planned MiB": round(graph_bytes(facts) / MIB, 1),
        "graph libmtmd MiB": round(told["compute_bytes"] / MIB, 1),
        "planned MiB": round((plan.weights + plan.compute) / MIB, 1),
        "peak MiB": round(told["peak_bytes"] / MIB, 1),
        "safe": plan.weights + plan.compute >= told["peak_bytes"],
    }


def _vocabulary(path: Path, width: int) -> Path:
    """A text model of that width, of which nothing but the vocabulary can be loaded."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(width // 64)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    byte_vocabulary(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
