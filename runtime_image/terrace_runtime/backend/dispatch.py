"""Kernels chosen when the process starts: a build that has them for every CPU loads them here.

Owns: finding and loading ggml's backend libraries beside the binding. Does not own: which one is
taken (ggml scores them by what the CPU can do), the build (``runtime_image/build``). Without such
libraries the kernels are linked in and there is nothing to do. Next: ``llama.py``.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any


def start(lib: Any) -> None:
    """Start llama.cpp with the kernels beside ``lib``, llama_cpp's low-level module; idempotent."""
    folder = Path(lib.__file__).parent / "lib"
    if any(folder.glob("libggml-cpu-*.so")):
        # By this name: llama.cpp is bound to it, and libggml.so is a second registry.
        registry = ctypes.CDLL(str(folder / "libggml.so.0"))
        registry.ggml_backend_dev_count.restype = ctypes.c_size_t
        if registry.ggml_backend_dev_count() == 0:
            registry.ggml_backend_load_all_from_path(str(folder).encode())
    lib.llama_backend_init()
