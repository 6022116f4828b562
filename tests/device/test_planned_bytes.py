"""What the planner says of each place is what llama.cpp reports of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.engine_builders import DEMO, runtime_config
from support.expert_model import expert_model
from support.large_model import large_model
from terrace.controller.replica_offload import replica_offload
from terrace.planner.footprint import CELL_OVERHEAD_BYTES, footprint
from terrace.planner.geometry import DeviceSplit, Shape, cells
from terrace.planner.plan import DevicePlan, OffloadPlan
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.backend.devices import Device
    from terrace_runtime.contract import DeviceMemory, ModelFacts, Offload

LOGGED = 0.03 * 2**20
"""llama.cpp tells sizes in MiB with two digits, once per buffer."""
CONTEXT, PARALLEL = 512, 2

pytestmark = pytest.mark.timeout(300)


def facts_of(path: Path) -> ModelFacts:
    with path.open("rb") as file:
        return model_facts(read_header(file, path.stat().st_size), "a" * 64)


def told(split: DeviceSplit) -> Offload:
    """``split`` as a replica is told it."""
    device = DevicePlan(
        accelerator="any",
        backend="vulkan",
        resource="a/b",
        count=1,
        memory_bytes=0,
        device_layers=split.device_layers,
        expert_layers_on_host=split.expert_layers_on_host,
        feed_forward_on_host=split.moves_feed_forward,
        kv_on_device=split.kv_on_device,
    )
    zeros = dict.fromkeys(("weights_bytes", "kv_bytes", "compute_bytes", "base_bytes"), 0)
    limits = {"memory_request_bytes": 0, "memory_limit_bytes": 0, "cpu_millis": 1, "threads": 1}
    plan = OffloadPlan.model_validate(
        {
            "flavor": "a",
            "context_tokens": CONTEXT,
            "parallel": PARALLEL,
            "batch_tokens": 512,
            "ubatch_tokens": 512,
            "prefill_tokens": 256,
            "kv_key_type": "f16",
            "kv_value_type": "f16",
            "device": device,
            **zeros,
            **limits,
        }
    )
    return replica_offload(plan)


def memory(path: Path, split: DeviceSplit) -> tuple[DeviceMemory, DeviceMemory]:
    """What the device and the host hold."""
    config = runtime_config(
        model_path=str(path), context_tokens=CONTEXT, parallel=PARALLEL, threads=2
    ).model_copy(update={"offload": told(split)})
    backend = LlamaBackend()
    backend.load(config)
    there, here = backend.info.devices
    backend.close()
    return there, here


def compare(path: Path, split: DeviceSplit) -> None:
    facts = facts_of(path)
    shape = Shape(CONTEXT, PARALLEL, 512, "f16", "f16", split=split)
    size = footprint(facts, shape)
    there, here = memory(path, split)
    (planned,) = size.devices
    assert planned.weights_bytes == pytest.approx(there.weights_bytes, abs=LOGGED)
    assert planned.kv_bytes == pytest.approx(there.kv_bytes, abs=LOGGED)
    # Mapped ranges on the host span what lies between its tensors; never less than is used.
    assert size.host_weights_bytes <= here.weights_bytes + LOGGED
    notes = CELL_OVERHEAD_BYTES * PARALLEL * cells(shape)
    assert size.kv_bytes - notes == pytest.approx(here.kv_bytes, abs=LOGGED)
    assert there.compute_bytes <= planned.compute_bytes + LOGGED


@pytest.mark.parametrize("layers", [1, 2, 4, 6])
def test_layers_of_the_demo_model(device: Device, layers: int) -> None:
    assert device.is_gpu
    compare(DEMO / "chat.gguf", DeviceSplit(layers))


@pytest.mark.parametrize("experts", [1, 3])
def test_experts_on_the_host(device: Device, tmp_path: Path, experts: int) -> None:
    assert device.is_gpu
    path = expert_model(tmp_path / "experts.gguf", 3)
    compare(path, DeviceSplit(4, expert_layers_on_host=experts))


def test_feed_forward_weights_on_the_host(device: Device, tmp_path: Path) -> None:
    assert device.is_gpu
    path = large_model(tmp_path / "large.gguf", 2)
    whole = DeviceSplit(3)
    compare(path, whole)
    compare(path, replace(whole, expert_layers_on_host=2, moves_feed_forward=True))


def test_cells_on_the_host(device: Device) -> None:
    assert device.is_gpu
    compare(DEMO / "chat.gguf", DeviceSplit(6, kv_on_device=False))
