"""Plans of real shapes on real devices, one line each: a change here is a change for every user.

``TERRACE_GOLDEN=write`` writes the tables anew. Each plan is given to the runtime as well: its
settings parse, and its checks of an offload take them.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.devices import L4, ROOMS, plan_in, room
from support.model_shapes import facts
from support.planning import GIB
from support.projector_files import GEMMA_3_4B, projector_file
from terrace.controller.replica_offload import replica_offload
from terrace.planner.nodes import format_bytes
from terrace.planner.plan import OffloadPlan
from terrace_runtime.backend.devices import Device
from terrace_runtime.backend.offload import Placement as RuntimePlacement
from terrace_runtime.contract import RuntimeConfig
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.projector import projector_facts

if TYPE_CHECKING:
    from terrace.planner.room import NoPlacement

GOLDEN = Path(__file__).parent / "golden"
# Gemma 3 4B is the text part of a vision pair, which is planned whole below.
SHAPES = (
    "llama-3.1-8b",
    "llama-3.1-70b",
    "qwen3-30b-a3b",
    "gemma-3-27b",
    "deepseek-v2-lite",
    "deepseek-v3",
    "jamba-1.5-mini",
    "nemotron-h-8b",
    "granite-4.0-h-tiny",
    "bge-base",
    "flan-t5-xl",
    "gemma-3-4b",
)
PROFILES = ("Auto", "DeviceOnly", "Balanced", "HostHeavy", "DiskHeavy")
TOLD = (
    "llama-3.1-8b on mig-8",
    "llama-3.1-70b on 2xl4",
    "qwen3-30b-a3b on mig-8",
    "gemma-3-27b on l4",
    "granite-4.0-h-tiny on l4",
    "llama-3.1-8b on cpu",
)
HOST = {"mac-64": 64 * GIB}


@cache
def plan(shape: str, where: str, profile: str = "Auto") -> OffloadPlan | NoPlacement:
    place = room(ROOMS[where], host_bytes=HOST.get(where, 128 * GIB))
    return plan_in(facts(shape), place, offload={"profile": profile})


def line(result: OffloadPlan | NoPlacement) -> str:
    """A plan in one line."""
    if not isinstance(result, OffloadPlan):
        return result.message
    words = [f"{result.context_tokens} x {result.parallel}", result.weights]
    device = result.device
    if device is not None:
        words += [
            f"layers {device.device_layers} of {device.layers + 1}",
            f"experts of {device.expert_layers_on_host} on the host",
            "split " + "+".join(f"{share:g}" for share in device.tensor_split or (1,)),
            f"device {format_bytes(device.weights_bytes)} weights",
            f"{format_bytes(device.kv_bytes)} KV",
            f"{format_bytes(device.compute_bytes)} compute",
        ]
    words += [
        f"host tier {format_bytes(result.host_bytes)}",
        f"host request {format_bytes(result.memory_request_bytes)}",
        f"limit {format_bytes(result.memory_limit_bytes)}",
    ]
    return ", ".join(words)


def compare(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("TERRACE_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_plans_of_real_shapes_by_backend() -> None:
    rows = [
        f"{shape} on {where}: {line(plan(shape, where))}" for shape in SHAPES for where in ROOMS
    ]
    compare("device-plans.txt", "\n".join(rows) + "\n")


def test_plans_by_profile() -> None:
    rows = [
        f"{shape} on {where}, {profile}: {line(plan(shape, where, profile))}"
        for shape in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-30b-a3b")
        for where in ("l4", "mig-8")
        for profile in PROFILES
    ]
    compare("device-profiles.txt", "\n".join(rows) + "\n")


def test_plans_of_a_vision_pair(tmp_path: Path) -> None:
    """Gemma 3 4B with its projector: the same layers on the device, more on the host."""
    file = projector_file(tmp_path / "mmproj.gguf", GEMMA_3_4B)
    with file.open("rb") as opened:
        header = read_header(opened, file.stat().st_size)
    projector = projector_facts([header], "b" * 64)
    rows = []
    for where in ROOMS:
        place = room(ROOMS[where], host_bytes=HOST.get(where, 128 * GIB))
        found = plan_in(facts("gemma-3-4b"), place, {"projector": projector})
        rows.append(f"gemma-3-4b and projector on {where}: {line(found)}")
        if isinstance(found, OffloadPlan):
            rows += [f"- {each}" for each in found.reasons if each.startswith("projector")]
    compare("vision-pair.txt", "\n".join(rows) + "\n")


def test_what_status_plan_reasons_say() -> None:
    texts = []
    for title in TOLD:
        shape, _, where = title.partition(" on ")
        found = plan(shape, where)
        assert isinstance(found, OffloadPlan)
        texts.append("\n".join([f"# {title}", *(f"- {reason}" for reason in found.reasons)]))
    compare("reasons.txt", "\n\n".join(texts) + "\n")


@pytest.mark.parametrize("where", ROOMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_runtime_takes_each_plan(shape: str, where: str) -> None:
    for profile in PROFILES:
        found = plan(shape, where, profile)
        if not isinstance(found, OffloadPlan):
            continue
        config = RuntimeConfig(
            model="m",
            served_names=("m",),
            model_path="/model-cache/m.gguf",
            model_digest=facts(shape).digest,
            context_tokens=found.context_tokens,
            parallel=found.parallel,
            batch_tokens=found.batch_tokens,
            ubatch_tokens=found.ubatch_tokens,
            prefill_tokens=found.prefill_tokens,
            threads=found.threads,
            offload=replica_offload(found),
        )
        placement = RuntimePlacement(config.offload, DevicesOf(where), facts(shape).file_bytes)  # type: ignore[arg-type] # as far as Placement asks
        layers = found.device.expert_layers_on_host if found.device else 0
        assert len(placement.patterns) == bool(layers)
        assert all(buffer == "CPU" for _, buffer in placement.patterns)


class DevicesOf:
    """As many devices as a room has, and the CPU."""

    def __init__(self, where: str) -> None:
        place = ROOMS[where]
        count = place.count if place else 0
        self.cpu = Device(1, "CPU", "", False, "CPU", 1)
        self.gpus = tuple(
            Device(2 + index, f"CUDA{index}", "", True, f"CUDA{index}", 2 + index)
            for index in range(count)
        )
        self.all = (*self.gpus, self.cpu)


def test_a_plan_for_one_device_has_no_split() -> None:
    found = plan("llama-3.1-8b", "l4")
    assert isinstance(found, OffloadPlan)
    assert found.device is not None
    assert found.device.tensor_split == ()
    assert found.device.resource == L4.resource
