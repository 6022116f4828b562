"""Which bytes lie where, on a real device: what was computed is what llama.cpp reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import pytest

from support.engine_builders import DEMO, runtime_config
from support.expert_model import EXPERT_BYTES, expert_model
from support.large_model import large_model
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.llama import LlamaBackend

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.backend.devices import Device
    from terrace_runtime.contract import DeviceMemory, RuntimeConfig

LOGGED = 0.011 * 2**20
"""llama.cpp tells sizes in MiB with two digits, once per buffer."""
LAYERS = 5
KV_BYTES = 4 * 256 * 64 * 2 * 2
"""Of one layer: 4 sequences of 256 cells, one head of 64 values, keys and values of 16 bits."""

pytestmark = pytest.mark.timeout(300)


def config_of(path: Path = DEMO / "chat.gguf", **offload: Any) -> RuntimeConfig:
    return runtime_config(model_path=str(path), threads=2, offload=offload)


def memory(config: RuntimeConfig) -> tuple[DeviceMemory, DeviceMemory]:
    """What the device and the host hold of a loaded model."""
    backend = LlamaBackend()
    backend.load(config)
    there, here = backend.info.devices
    assert backend.info.capabilities.has_devices
    backend.close()
    return there, here


def demo_weights(*layers: int, output: bool = True) -> int:
    """Bytes of these layers of the demo model in its file."""
    starts = [f"blk.{layer}." for layer in layers] + (["output"] if output else [])
    tensors = gguf.GGUFReader(DEMO / "chat.gguf").tensors
    found = [tensor for tensor in tensors if tensor.name.startswith(tuple(starts))]
    tied = output and not any(tensor.name == "output.weight" for tensor in tensors)
    found += [tensor for tensor in tensors if tied and tensor.name == "token_embd.weight"]
    return int(sum(tensor.n_bytes for tensor in found))


@pytest.mark.parametrize("count", [1, 3, LAYERS + 1])
def test_so_many_layers_lie_on_the_device_and_the_output_counts_as_one(
    device: Device, count: int
) -> None:
    there, here = memory(config_of(device_layers=count))
    layers = range(LAYERS + 1 - count, LAYERS)
    assert there.name == device.name
    assert there.weights_bytes == pytest.approx(demo_weights(*layers), abs=LOGGED)
    assert there.kv_bytes == pytest.approx(len(layers) * KV_BYTES, abs=LOGGED)
    assert here.kv_bytes == pytest.approx((LAYERS - len(layers)) * KV_BYTES, abs=LOGGED)
    assert there.compute_bytes > 0
    assert there.total_bytes is not None
    assert there.total_bytes >= there.weights_bytes + there.kv_bytes + there.compute_bytes


def test_minus_1_is_all_layers(device: Device) -> None:
    assert memory(config_of(device_layers=-1)) == memory(config_of(device_layers=LAYERS + 1))


def test_without_layers_the_device_holds_nothing_at_all(device: Device) -> None:
    there, here = memory(config_of(device_layers=0))
    assert (there.weights_bytes, there.kv_bytes, there.compute_bytes) == (0, 0, 0)
    assert here.kv_bytes == pytest.approx(LAYERS * KV_BYTES, abs=LOGGED)


def test_the_kv_of_layers_on_the_device_may_stay_on_the_host(device: Device) -> None:
    there, here = memory(config_of(device_layers=-1, kv_on_device=False))
    assert there.kv_bytes == 0
    assert here.kv_bytes == pytest.approx(LAYERS * KV_BYTES, abs=LOGGED)
    assert there.weights_bytes == pytest.approx(demo_weights(*range(LAYERS)), abs=LOGGED)


def test_quantised_kv_of_unlike_types_takes_what_was_computed(device: Device) -> None:
    changes = {"kv_key_type": "q8_0", "kv_value_type": "q4_0"}
    there, _ = memory(config_of(device_layers=-1).model_copy(update=changes))
    assert there.kv_bytes == pytest.approx(LAYERS * 4 * 256 * (68 + 36), abs=LOGGED)


def test_an_override_takes_tensors_off_the_device(device: Device) -> None:
    plain, _ = memory(config_of(device_layers=3))
    there, _ = memory(
        config_of(device_layers=3, tensor_overrides=((r"blk\.4\.ffn_(up|down)", "CPU"),))
    )
    moved = 2 * 192 * 512 // 32 * 34
    assert plain.weights_bytes - there.weights_bytes == pytest.approx(moved, abs=LOGGED)


def test_an_override_puts_tensors_onto_the_device(device: Device) -> None:
    override = (r"blk\.0\.ffn_(up|down)\.weight", device.buffer_type)
    there, _ = memory(config_of(device_layers=0, tensor_overrides=(override,)))
    assert there.weights_bytes == pytest.approx(2 * 192 * 512 // 32 * 34, abs=LOGGED)


def test_the_first_layers_experts_stay_on_the_host(device: Device, tmp_path: Path) -> None:
    file = expert_model(tmp_path / "experts.gguf", 3)
    held = [
        memory(config_of(file, expert_layers_on_host=count))[0].weights_bytes for count in (0, 2, 3)
    ]
    assert held[0] - held[1] == pytest.approx(2 * EXPERT_BYTES, abs=LOGGED)
    assert held[0] - held[2] == pytest.approx(3 * EXPERT_BYTES, abs=LOGGED)


@pytest.mark.parametrize("weights", ["mapped", "loaded", "paged"])
def test_layers_lie_on_the_device_however_weights_are_read(device: Device, weights: str) -> None:
    there, _ = memory(config_of(device_layers=3, weights=weights))
    assert there.weights_bytes == pytest.approx(demo_weights(3, 4), abs=LOGGED)


def test_attention_that_the_device_lacks_is_refused_and_the_host_can_have_it(
    device: Device, tmp_path: Path
) -> None:
    file = large_model(tmp_path / "narrow.gguf", 1, head=4)
    words = rf"kv types f16/f16: this build has no flash attention .* on {device.name} \(heads of 4"
    with pytest.raises(BackendError, match=words):
        LlamaBackend().load(config_of(file))
    there, here = memory(config_of(file, kv_on_device=False))
    assert (there.kv_bytes, here.kv_bytes > 0) == (0, True)


def test_more_shares_than_devices_are_refused_and_one_is_taken(device: Device) -> None:
    with pytest.raises(BackendError, match=r"tensor_split has 2 shares, .* found 1 devices"):
        LlamaBackend().load(config_of(tensor_split=(1.0, 1.0)))
    there, _ = memory(config_of(tensor_split=(1.0,)))
    assert there.weights_bytes == pytest.approx(demo_weights(*range(LAYERS)), abs=LOGGED)


def test_a_buffer_type_of_another_build_is_refused_with_those_there_are(device: Device) -> None:
    words = rf"names the buffer type CUDA9, but this build has CPU, {device.buffer_type}"
    with pytest.raises(BackendError, match=words):
        LlamaBackend().load(config_of(tensor_overrides=(("blk", "CUDA9"),)))
