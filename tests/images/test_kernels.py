"""The runtime image chooses the CPU kernels when it starts, and needs nothing but its own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.images import run_in

pytestmark = pytest.mark.timeout(400)
LOAD = """
import ctypes, json, pathlib
import llama_cpp.llama_cpp as lib
from terrace_runtime.backend import dispatch
from terrace_runtime.demo import __path__ as demo

dispatch.start(lib)
folder = pathlib.Path(lib.__file__).parent / "lib"
model = str(pathlib.Path(list(demo)[0]) / "chat.gguf").encode()
scores = {p.name: ctypes.CDLL(str(p)).ggml_backend_score() for p in folder.glob("libggml-cpu-*.so")}
loaded = lib.llama_model_load_from_file(model, lib.llama_model_default_params())
print(json.dumps({
    "scores": scores,
    "info": lib.llama_print_system_info().decode(),
    "loaded": bool(loaded),
}))
"""
CHOSEN = """
import json, pathlib, re
import llama_cpp.llama_cpp as lib
from terrace_runtime.backend import dispatch

dispatch.start(lib)
maps = pathlib.Path("/proc/self/maps").read_text()
print(json.dumps(sorted(set(re.findall(r"libggml-cpu-[a-z0-9_]+[.]so", maps)))))
"""


def test_the_best_kernels_that_this_cpu_runs_are_chosen(root: Path) -> None:
    found = run_in(root, LOAD)
    best = max(found["scores"], key=found["scores"].__getitem__)
    assert run_in(root, CHOSEN) == [best]
    assert found["loaded"]
    assert len(found["scores"]) >= 8, "every level from SSE4.2 to AMX has its own"


def test_kernels_for_amx_are_chosen_where_the_cpu_has_it(root: Path) -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[-1].split("\n")[0]
    if "amx_int8" not in flags.split():
        assert run_in(root, CHOSEN) != ["libggml-cpu-sapphirerapids.so"]
        return
    assert run_in(root, CHOSEN) == ["libggml-cpu-sapphirerapids.so"]
    assert "AMX_INT8 = 1" in run_in(root, LOAD)["info"]
