"""The runtime image chooses the CPU kernels when it starts, and needs nothing but its own files."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.images import Image

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


@pytest.fixture(scope="module")
def root(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime image's files, unpacked."""
    folder = tmp_path_factory.mktemp("runtime")
    for layer in images["runtime"].layers:
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as content:
            content.extractall(folder, filter="fully_trusted")
    folder.chmod(0o755)
    return folder


def run(root: Path, code: str) -> Any:
    """What ``code`` prints as JSON in the image, as its user, with /proc and /dev alone."""
    inside = ["chroot", "--userspec=65532:65532", str(root), "/opt/terrace/bin/python", "-c", code]
    mounted = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", mounted, str(root), *inside]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_best_kernels_that_this_cpu_runs_are_chosen(root: Path) -> None:
    found = run(root, LOAD)
    best = max(found["scores"], key=found["scores"].__getitem__)
    assert run(root, CHOSEN) == [best]
    assert found["loaded"]
    assert len(found["scores"]) >= 8, "every level from SSE4.2 to AMX has its own"


def test_kernels_for_amx_are_chosen_where_the_cpu_has_it(root: Path) -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[-1].split("\n")[0]
    if "amx_int8" not in flags.split():
        assert run(root, CHOSEN) != ["libggml-cpu-sapphirerapids.so"]
        return
    assert run(root, CHOSEN) == ["libggml-cpu-sapphirerapids.so"]
    assert "AMX_INT8 = 1" in run(root, LOAD)["info"]
