"""What llama.cpp and the kernel say of memory becomes an exit code of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.node_trees import BOX, pod_on_v2, write
from terrace_runtime.api.shortage import OutOfMemoryKills, memory_exit
from terrace_runtime.contract import EXIT_DEVICE_MEMORY, EXIT_HOST_MEMORY

if TYPE_CHECKING:
    from pathlib import Path

DEVICE, HOST = EXIT_DEVICE_MEMORY, EXIT_HOST_MEMORY


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (
            "alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory",
            DEVICE,
        ),
        ("ggml_gallocr_reserve_n_impl: failed to allocate Vulkan0 buffer of size 5", DEVICE),
        ("error loading model: unable to allocate ROCm0 buffer", DEVICE),
        ("vk::Device::allocateMemory: ErrorOutOfDeviceMemory", DEVICE),
        ("llama.cpp aborted: CUDA error: out of memory", DEVICE),
        ("ggml_metal: failed to allocate Metal buffer of 7 bytes (out of memory)", DEVICE),
        ("unable to allocate CPU_REPACK buffer", HOST),
        ("alloc_tensor_range: failed to allocate CUDA_Host buffer of size 9", HOST),
        ("output_reserve: failed to allocate output buffer of size 9.00 MiB", HOST),
        ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99", HOST),
        ("terminate called after throwing an instance of 'std::bad_alloc'", HOST),
        ("the engine process was ended by SIGKILL: out of memory, or someone killed it", None),
        ("failed to allocate buffer for kv cache", None),
        ("there is no model file at /models/out of memory.gguf", None),
        ("llama.cpp cannot decode its first batch: code 2", None),
    ],
)
def test_words_say_whose_memory_was_too_small(words: str, code: int | None) -> None:
    assert memory_exit(words, kills=0) == code


def test_a_kill_counts_where_the_kernel_says_that_it_was_for_memory() -> None:
    words = "the engine process was ended by SIGKILL: out of memory, or someone killed it"
    assert memory_exit(words, kills=1) == HOST
    assert memory_exit("the engine process was ended by SIGSEGV", kills=1) is None


def test_kills_of_our_own_group_are_counted_from_the_start(tmp_path: Path) -> None:
    root = pod_on_v2(tmp_path)
    found = OutOfMemoryKills(root)
    assert found.count == 0
    write(root, f"sys/fs/cgroup/{BOX}/memory.events", "oom 9\noom_kill 6")
    assert found.count == 4


def test_without_control_groups_nothing_is_counted(tmp_path: Path) -> None:
    assert OutOfMemoryKills(tmp_path).count == 0
