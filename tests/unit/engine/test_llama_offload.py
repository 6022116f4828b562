"""Offload settings on the real llama.cpp without a device: their effect, or who refuses them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import DEMO, runtime_config
from support.expert_model import expert_model
from support.large_model import large_model
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.llama import LlamaBackend

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import DeviceMemory, RuntimeConfig

LOGGED = 0.005 * 2**20
"""llama.cpp tells sizes in MiB with two digits."""
DEMO_BYTES = (DEMO / "chat.gguf").stat().st_size


def config_of(path: Path = DEMO / "chat.gguf", **offload: Any) -> RuntimeConfig:
    return runtime_config(model_path=str(path), threads=1, parallel=1, offload=offload)


def host_memory(config: RuntimeConfig) -> DeviceMemory:
    """Loads in this process; the host's entry of the report."""
    backend = LlamaBackend()
    backend.load(config)
    devices = backend.info.devices
    assert not backend.info.capabilities.has_devices
    backend.close()
    assert [device.name for device in devices] == ["CPU"]
    return devices[0]


@pytest.mark.parametrize(
    ("offload", "words"),
    [
        ({"device_layers": 3}, r"offload.device_layers is 3, but .* no device other than the CPU"),
        ({"tensor_split": (1.0, 1.0)}, r"offload.tensor_split has 2 shares, .* found 0 devices"),
        (
            {"tensor_overrides": (("blk.*", "CUDA0"),)},
            r"offload.tensor_overrides\[0\] names the buffer type CUDA0, but this build has CPU",
        ),
        ({"tensor_overrides": (("blk.(", "CPU"),)}, r"offload.tensor_overrides: blk\.\( is no pat"),
        (
            {"tensor_overrides": (("ffn_gate_inp", "CPU"),)},
            r"offload.tensor_overrides: no tensor of this model matches ffn_gate_inp",
        ),
        (
            {"expert_layers_on_host": 2},
            r"offload.expert_layers_on_host is 2: no tensor of this model matches",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(offload: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=words):
        LlamaBackend().load(config_of(**offload))


def test_a_context_beyond_the_models_own_is_refused_with_both_numbers() -> None:
    with pytest.raises(BackendError, match=r"context_tokens is 8192, .* trained for 4096 tokens"):
        LlamaBackend().load(config_of().model_copy(update={"context_tokens": 8192}))


@pytest.mark.parametrize("pair", [("q8_0", "q4_0"), ("q4_0", "f16"), ("f16", "q8_0")])
def test_a_cpu_build_can_mix_the_kv_types(pair: tuple[str, str]) -> None:
    changes = {"kv_key_type": pair[0], "kv_value_type": pair[1]}
    row = {"f16": 128, "q8_0": 68, "q4_0": 36}  # bytes of 64 values
    found = host_memory(config_of().model_copy(update=changes))
    cells = 5 * 256
    assert found.kv_bytes == pytest.approx(cells * (row[pair[0]] + row[pair[1]]), abs=LOGGED)


def test_kv_types_that_do_not_divide_the_heads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    large_model(path, 1, head=16)
    with pytest.raises(BackendError, match="q8_0 packs 32 values and this model's heads have 16"):
        LlamaBackend().load(config_of(path).model_copy(update={"kv_key_type": "q8_0"}))


def test_paged_weights_are_not_repacked_and_mapped_ones_are(tmp_path: Path) -> None:
    file = large_model(tmp_path / "large.gguf", 4)
    size = file.stat().st_size
    paged = host_memory(config_of(file, weights="paged")).weights_bytes
    assert paged == pytest.approx(size, rel=0.01)
    assert host_memory(config_of(file, weights="loaded")).weights_bytes == pytest.approx(
        size, rel=0.01
    )
    # All matrices but those of the vocabulary exist again, as kernels want them; the mapping that
    # is counted ends with the last tensor that is used from it.
    assert host_memory(config_of(file, weights="mapped")).weights_bytes > 1.5 * size


def test_experts_may_stay_on_the_host_where_there_are_experts(tmp_path: Path) -> None:
    file = expert_model(tmp_path / "experts.gguf", 2)
    plain = host_memory(config_of(file))
    assert host_memory(config_of(file, expert_layers_on_host=2)) == plain


# Locked weights, in a child that may become an ordinary user -----------------------------------

_CHILD = """
import json, os, resource, sys
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import RuntimeConfig
limit, user = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (min(limit, 65536), limit))
if user:
    os.setgid(user)
    os.setuid(user)
try:
    LlamaBackend().load(RuntimeConfig.model_validate_json(sys.argv[3]))
    error = ""
except BackendError as failure:
    error = str(failure)
status = open("/proc/self/status").read().split()
print(json.dumps([error, int(status[status.index("VmLck:") + 1])]))
"""


def locked(limit: int, *, as_user: int = 0) -> tuple[str, int]:
    """Error and KiB locked by a child with this limit of locked memory."""
    config = config_of(weights="locked").model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(limit), str(as_user), config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error, kib = json.loads(done.stdout)
    return error, kib


def test_locked_weights_are_locked_up_to_the_hard_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY and hard < DEMO_BYTES:
        pytest.skip(f"the limit of locked memory here is {hard} bytes")
    error, kib = locked(DEMO_BYTES + 2**20)
    assert not error
    assert kib * 1024 > 0.95 * DEMO_BYTES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without IPC_LOCK")
def test_locked_weights_beyond_the_limit_are_refused_with_both_numbers() -> None:
    error, kib = locked(2**20, as_user=65534)
    assert f"needs {DEMO_BYTES} bytes" in error
    assert "limit (RLIMIT_MEMLOCK) is 1048576 bytes (1 MiB): raise it" in error
    assert kib == 0
