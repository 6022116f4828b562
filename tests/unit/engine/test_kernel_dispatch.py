"""Which kernels are loaded before llama.cpp starts, over a registry made for the test."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

REGISTRY = """
#include <stdio.h>
static unsigned long devices;
unsigned long ggml_backend_dev_count(void) { return devices; }
void ggml_backend_load_all_from_path(const char *path) { devices++; printf("loads %s\\n", path); }
"""
START = """
import sys, types
from terrace_runtime.backend.dispatch import start
lib = types.SimpleNamespace(__file__=sys.argv[1], llama_backend_init=lambda: None)
start(lib)
start(lib)
"""


@pytest.fixture
def binding(tmp_path: Path) -> Path:
    """A binding whose registry says which folder it is told to load."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "registry.c").write_text(REGISTRY)
    library = tmp_path / "lib/libggml.so.0"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "registry.c"], check=True)
    return tmp_path / "llama_cpp.py"


def started(binding: Path) -> list[str]:
    """What the registry says of two starts in one process."""
    command = [sys.executable, "-c", START, str(binding)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_kernels_beside_the_binding_are_loaded_once(binding: Path) -> None:
    (binding.parent / "lib/libggml-cpu-haswell.so").touch()
    assert started(binding) == [f"loads {binding.parent / 'lib'}"]


def test_a_build_with_its_kernels_linked_in_loads_nothing(binding: Path) -> None:
    (binding.parent / "lib/libggml-cpu.so").touch()
    assert started(binding) == []
