"""What the device computes: the verified answers, KV state that comes and goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.engine_builders import answer_of, conversations, runtime_config
from support.replicas import pod_folder, serving
from support.waiting import wait_for
from terrace_runtime.backend import DECODE_OK
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import RuntimeReport
from terrace_runtime.engine.inprocess import InProcessEngine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from terrace_runtime.backend.devices import Device

pytestmark = pytest.mark.timeout(300)

PLACEMENTS: list[dict[str, Any]] = [
    {"device_layers": 3},
    {"device_layers": -1},
    {"device_layers": -1, "kv_on_device": False},
]


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("offload", PLACEMENTS, ids=["partly", "wholly", "kv-on-host"])
async def test_interleaved_answers_are_the_verified_ones(
    device: Device, offload: dict[str, Any], *, kv_unified: bool
) -> None:
    config = runtime_config(
        context_tokens=512, batch_tokens=256, threads=2, offload=offload, kv_unified=kv_unified
    )
    engine = InProcessEngine(config, LlamaBackend())
    await engine.start()
    chosen = conversations()[:5]
    answers = await asyncio.gather(
        *(answer_of(engine, one.request(str(number))) for number, one in enumerate(chosen))
    )
    await engine.close()
    assert [answer.text for answer in answers] == [one.answer for one in chosen]


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("offload", PLACEMENTS, ids=["partly", "wholly", "kv-on-host"])
def test_a_sequences_state_comes_back_as_it_left(
    device: Device, offload: dict[str, Any], *, kv_unified: bool
) -> None:
    backend = LlamaBackend()
    backend.load(runtime_config(threads=2, offload=offload, kv_unified=kv_unified))
    prompt = list(range(20, 60))
    backend.batch.clear()
    backend.batch.extend(prompt, 1, 0, outputs=1)
    assert backend.decode() == DECODE_OK
    state = state_of(backend, 1)
    following = logits_after(backend, 1, len(prompt))
    backend.seq_rm(1)
    assert backend.state_set(1, state)
    assert np.array_equal(state_of(backend, 1), state)
    assert np.array_equal(logits_after(backend, 1, len(prompt)), following)
    assert not backend.state_set(2, state[:-7].copy())
    backend.close()


def state_of(backend: LlamaBackend, slot: int) -> NDArray[np.uint8]:
    state = np.zeros(backend.state_size(slot), np.uint8)
    assert backend.state_get(slot, state) == state.nbytes
    return state


def logits_after(backend: LlamaBackend, slot: int, position: int) -> NDArray[np.float32]:
    backend.batch.clear()
    backend.batch.extend([7], slot, position, outputs=1)
    assert backend.decode() == DECODE_OK
    row: NDArray[np.float32] = backend.logits()[0].copy()
    return row


def test_a_replica_tells_what_lies_on_its_device(device: Device, tmp_path: Path) -> None:
    pod = pod_folder(tmp_path / "pod")
    demo = runtime_config()
    (pod / "models/chat.gguf").symlink_to(demo.model_path)
    config = runtime_config(model_path="/models/chat.gguf", offload={"device_layers": 3})
    with serving(pod, config) as replica:
        wait_for("readiness", replica.is_ready, timeout=120)
        report = RuntimeReport.model_validate_json(replica.get("/v1/runtime"))
    assert report.capabilities.has_devices
    there, here = report.memory.devices
    assert (there.name, here.name) == (device.name, "CPU")
    assert there.weights_bytes > 2**20
    assert report.memory.kv_bytes == there.kv_bytes + here.kv_bytes
