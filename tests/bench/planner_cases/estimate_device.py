"""estimate-device: plans for a device and the host's rest against llama.cpp's own report.

Owns: which models, which splits and the software Vulkan device. Small models are really loaded, and
every place's weights, cells and graphs compared; large shapes are opened without memory, where
llama.cpp tells its graphs by place and the sum of weights and cells. What a place lacks or has too
much counts against that place's bytes, or, where it holds less than a twentieth, against the whole.
Needs the Vulkan build (``make test-device`` makes it once) and Mesa's software driver.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import terrace_runtime
from bench.allocation import Answer, Ask, ask
from bench.estimates import MIB, host_bytes, outputs, shape_of
from bench.models import model_file
from bench.planner_cases.estimate_cpu import facts_of
from bench.verdict import Metric, absolute, lost
from build.workshop import say
from support.model_shapes import facts, write_header
from terrace.planner.footprint import Footprint, footprint
from terrace.planner.geometry import DeviceSplit
from terrace.planner.placed import HEADROOM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.verdict import Line
    from terrace_runtime.contract import ModelFacts

METRIC = Metric("estimate-device", "% off", 5.0, less_is_better=True)
"""Of full offload; partial offload may be twice as far off and is counted half."""
LOADED: Final = ("smollm2-135m", "lfm2-1.2b", "granite-3.1-3b-a800m")
"""Their tensors, and 512 rows of logits, are no larger than LARGEST_TENSOR: see there."""
FILES: Final = ("mid-q8_0", "big-q4_0")
OPENED: Final = (
    "llama-2-7b", "phi-3-mini", "gemma-3-4b", "olmoe-1b-7b", "llama-3.1-8b", "qwen3-8b",
    "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "mixtral-8x7b", "llama-3.1-70b",
)  # fmt: skip
LARGEST_TENSOR: Final = 128 * MIB
"""Bytes that a kernel may read through one binding of the software driver (maxStorageBufferRange):
it takes no larger tensor, while GPUs take 4 GiB. Experts of larger tensors stay on the host whole,
so their split says nothing about a GPU and is left out."""
_DEVICE, _DRIVER = "Vulkan0", Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")
_SMALL_PART = 20
EXPERT_TENSORS: Final = 3


@dataclass(frozen=True)
class Place:
    """Planned and reported bytes of one place."""

    name: str
    planned: int
    reported: int
    margin: int


def run() -> Line:
    """The worst error, with a row per model and split."""
    builds = sorted(Path(".local/device").glob("*/llama_cpp/__init__.py"))
    if not builds or not _DRIVER.exists():
        return lost(METRIC, "no Vulkan build or no software driver: run make test-device once")
    environment = {
        "PYTHONPATH": f"{builds[-1].parents[1].resolve()}:{os.environ.get('PYTHONPATH', 'tests')}",
        "VK_ICD_FILENAMES": str(_DRIVER),
        "GGML_VK_VISIBLE_DEVICES": "0",
        "GGML_VK_DISABLE_FUSION": "1",
    }
    rows = [row for each in _models() for row in _rows(each, environment)]
    full = max(abs(row["worst %"]) for row in rows if row["split"] == "full")
    partial = max(abs(row["worst %"]) for row in rows if row["split"] != "full")
    unsafe = [f"{row['model']} {row['split']}" for row in rows if not row["safe"]]
    line = absolute(METRIC, [{METRIC.id: max(full, partial / 2)}])
    also = f"full {full:.2f} %, partial {partial:.2f} %, {len(rows)} splits"
    also += f"; low by more than the margin: {', '.join(unsafe)}" * bool(unsafe)
    ok = line["ok"] and not unsafe
    return {**line, "rounds": len(rows), "ok": ok, "also": also, "rows": rows}


@dataclass(frozen=True)
class Model:
    """A model file and how it is opened."""

    name: str
    facts: ModelFacts
    file: Path
    is_real: bool
    """Loaded, not only opened."""


def _models() -> Iterator[Model]:
    demo = Path(terrace_runtime.__file__).parent / "demo" / "chat.gguf"
    files = {"demo": demo} | {name: model_file(name) for name in FILES}
    for name, file in files.items():
        yield Model(f"{name} (loaded)", facts_of(file), file, is_real=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in (*LOADED, *OPENED):
            file = write_header(name, Path(folder) / f"{name}.gguf")
            is_real = name in LOADED
            yield Model(f"{name}{' (loaded)' * is_real}", facts(name), file, is_real)
            file.unlink()


def _rows(model: Model, environment: dict[str, str]) -> Iterator[Line]:
    say(f"device {model.name}")
    known, layers = model.facts, model.facts.layer_count
    whole = Ask(min(4096, known.context_length), 2, device_layers=layers + 1, weights="loaded")
    splits = {"full": whole, "half": replace(whole, device_layers=layers // 2)}
    largest = max(run.expert_bytes for run in known.layers) // EXPERT_TENSORS
    if 0 < largest <= LARGEST_TENSOR:
        splits["experts on host"] = replace(whole, expert_layers_on_host=layers)
    answers = ask(model.file, splits.values(), is_real=model.is_real, environment=environment)
    for (split, asked), answer in zip(splits.items(), answers, strict=True):
        compared = _row(known, asked, answer, is_real=model.is_real)
        yield {"model": model.name, "split": split, **compared}


def _row(known: ModelFacts, asked: Ask, answer: Answer, *, is_real: bool) -> Line:
    found = list(places(known, asked, answer, is_real=is_real))
    all_bytes = sum(place.reported for place in found)
    errors = {
        place.name: 100
        * (place.planned - place.reported)
        / (place.reported if place.reported * _SMALL_PART > all_bytes else all_bytes)
        for place in found
    }
    _, worst = max((abs(error), error) for error in errors.values())
    row: Line = {"worst %": round(worst, 2)}
    for place in found:
        row[f"{place.name} planned MiB"] = round(place.planned / MIB, 1)
        row[f"{place.name} llama.cpp MiB"] = round(place.reported / MIB, 1)
    row["safe"] = all(place.planned + place.margin >= place.reported for place in found)
    return row


def places(known: ModelFacts, asked: Ask, answer: Answer, *, is_real: bool) -> Iterator[Place]:
    """The device, then the host."""
    split = DeviceSplit(
        asked.device_layers,
        expert_layers_on_host=asked.expert_layers_on_host,
        kv_on_device=asked.kv_on_device,
    )
    shape = shape_of(asked, split)
    size: Footprint = footprint(known, shape)
    device = size.devices[0]
    host = host_bytes(known, shape, size)
    if is_real:
        there = answer.on(_DEVICE, "model", "KV", "RS", "compute")
        here = answer.total("model", "KV", "RS", "compute") - there
    else:
        # Weights and cells are told as sums alone: what the plan has elsewhere is not here.
        sums = answer.weights + answer.cells + answer.states
        # A tied head lies in both places and once in the file.
        twice = device.weights_bytes + size.host_weights_bytes - size.weights_bytes
        sums += max(0, twice)
        kept = device.weights_bytes + device.kv_bytes
        there = kept + answer.on(_DEVICE, "compute")
        here = sums - kept + answer.total("compute") - answer.on(_DEVICE, "compute")
    yield Place("device", device.total_bytes, there, device.compute_bytes // HEADROOM)
    margin = (size.compute_bytes + size.base_bytes) // HEADROOM
    yield Place("host", host, here + outputs(known, shape, answer), margin)
