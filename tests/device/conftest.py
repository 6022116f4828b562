"""Tests on a second device: `make test-device` builds llama.cpp for Vulkan and runs them on it.

Without a GPU the device is Mesa's software one (lavapipe), which is slow, and true about what lies
where. The Makefile puts the Vulkan build before the environment's own on PYTHONPATH.
"""

from __future__ import annotations

import os

import llama_cpp.llama_cpp as lib
import pytest

from terrace_runtime.backend.devices import Device, Devices


@pytest.fixture(scope="session")
def device() -> Device:
    """The one device beside the CPU; skipped where the build has none."""
    lib.llama_backend_init()
    gpus = Devices(lib._lib).gpus
    if not gpus and "GGML_VK_VISIBLE_DEVICES" in os.environ:
        pytest.fail("the Vulkan build found no device: install a driver (mesa-vulkan-drivers)")
    if not gpus:
        pytest.skip("this build of llama.cpp found no device: run make test-device")
    assert len(gpus) == 1
    return gpus[0]
