"""What llama.cpp itself says that a model takes: loaded without memory (``no_alloc``), or really.

Owns: the child process that opens contexts as the runtime does, and reading its log. Does not own:
what is compared with it (``cases/estimates.py``). A child per model, because a shape that llama.cpp
does not take ends the process. Recipe: a model is opened without mmap, and then its log tells true
sizes of cells and graphs, but not of weights, which lie in the file.
Usage: ``python -m bench.allocation FILE`` with a JSON list of Ask on stdin.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from terrace_runtime.contract import Offload, RuntimeConfig, Speculation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from terrace.api.values import KvType

TIMEOUT_S: Final = 300
_DEBUG: Final = 1
_MIB: Final = 2**20
_CELLS = re.compile(r"llama_kv_cache\w*: size =\s*([0-9.]+) MiB")
_STATES = re.compile(r"llama_memory_recurrent: size =\s*([0-9.]+) MiB")
_UNUSED = re.compile(r"model has unused tensor \S+ \(size = (\d+) bytes\)")
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([0-9.]+) MiB")


@dataclass(frozen=True)
class Ask:
    """One context to open."""

    context: int
    parallel: int
    ubatch: int = 512
    key_type: KvType = "f16"
    value_type: KvType = "f16"
    unified: bool = False
    guessed: int = 0
    device_layers: int = 0
    expert_layers_on_host: int = 0
    kv_on_device: bool = True
    weights: Literal["mapped", "loaded"] = "mapped"

    @property
    def text(self) -> str:
        """Short words for a table."""
        joint = " unified" if self.unified else ""
        return f"{self.context} x {self.parallel}{joint} {self.key_type}/{self.value_type}"


@dataclass(frozen=True)
class Answer:
    """Bytes that llama.cpp reports for one Ask."""

    weights: int
    """Of all tensors that are read."""
    cells: int
    states: int
    buffers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By name of the buffer (``CPU``, ``Vulkan0``), then kind (``compute``, ``output`` ...)."""

    def total(self, *kinds: str) -> int:
        """All buffers of some kinds, wherever they lie."""
        return sum(row.get(kind, 0) for row in self.buffers.values() for kind in kinds)

    def on(self, device: str, *kinds: str) -> int:
        """Buffers of some kinds on one device."""
        return sum(self.buffers.get(device, {}).get(kind, 0) for kind in kinds)


def ask(
    file: Path, asks: Iterable[Ask], *, is_real: bool = False, environment: Mapping[str, str] = {}
) -> list[Answer]:
    """Open ``file`` in a child once per Ask; raises RuntimeError with llama.cpp's last words."""
    wanted = json.dumps([asdict(one) for one in asks])
    command = [sys.executable, "-m", "bench.allocation", str(file), *(["--real"] * is_real)]
    done = subprocess.run(
        command,
        input=wanted,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", **environment},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{file.name}: {done.stderr.strip()[-800:]}")
    return [Answer(**row) for row in json.loads(done.stdout)]


def config_of(one: Ask, file: str) -> RuntimeConfig:
    """The configuration with which a replica opens such a context."""
    return RuntimeConfig(
        model="shape",
        served_names=("shape",),
        model_path=file,
        model_digest="5" * 64,
        context_tokens=one.context,
        parallel=one.parallel,
        ubatch_tokens=one.ubatch,
        threads=2,
        kv_key_type=one.key_type,
        kv_value_type=one.value_type,
        kv_unified=one.unified,
        speculation=Speculation(
            mode="ngram" if one.guessed else "off", max_tokens=one.guessed or 4
        ),
        offload=Offload(
            device_layers=one.device_layers,
            expert_layers_on_host=one.expert_layers_on_host,
            kv_on_device=one.kv_on_device,
            weights=one.weights,
        ),
    )


def main() -> None:
    """Answer every Ask of stdin as JSON on stdout; llama.cpp's log goes to stderr."""
    file, is_real = sys.argv[1], "--real" in sys.argv
    asks = [Ask(**row) for row in json.load(sys.stdin)]
    child = _Child(file, is_real=is_real)
    print(json.dumps([asdict(child.answer(one)) for one in asks]))


class _Child:
    """llama.cpp with one model file; the model is loaded anew when its place changes."""

    def __init__(self, file: str, *, is_real: bool) -> None:
        # Only the child loads llama.cpp.
        import llama_cpp.llama_cpp as lib  # noqa: PLC0415 - see above

        from terrace_runtime.backend.devices import Devices  # noqa: PLC0415 - see above

        self._lib, self._file, self._is_real = lib, file, is_real
        self._lines: list[str] = []
        self._callback = lib.llama_log_callback(self._hear)
        lib.llama_log_set(self._callback, None)
        lib.llama_backend_init()
        self._devices = Devices(lib._lib)
        self._model: Any = None
        self._place: tuple[int, int] | None = None
        self._load_lines: list[str] = []

    def answer(self, one: Ask) -> Answer:
        from terrace_runtime.backend.capabilities import kind_of  # noqa: PLC0415 - see above
        from terrace_runtime.backend.context import context_params  # noqa: PLC0415 - see above
        from terrace_runtime.backend.embedding import fit_context  # noqa: PLC0415 - see above

        config = config_of(one, self._file)
        self._load(config, one)
        self._lines.clear()
        params = context_params(self._lib, config, config.threads)
        kind = kind_of(self._lib, self._model)
        fit_context(params, config, kind, self._lib.llama_model_n_head(self._model))
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            sys.exit("llama.cpp opens no context: " + " ".join(self._lines[-5:]))
        unused = sum(int(found[1]) for line in self._load_lines if (found := _UNUSED.search(line)))
        weights = self._lib.llama_model_size(self._model) - unused
        answer = read_log([*self._load_lines, *self._lines], weights)
        self._lib.llama_free(context)
        return answer

    def _load(self, config: RuntimeConfig, one: Ask) -> None:
        from terrace_runtime.backend.offload import Placement  # noqa: PLC0415 - see above

        place = (one.device_layers, one.expert_layers_on_host)
        if place == self._place:
            return
        if self._model:
            self._lib.llama_model_free(self._model)
        self._place = place
        self._lines.clear()
        params = self._lib.llama_model_default_params()
        placement = Placement(config.offload, self._devices, Path(self._file).stat().st_size)
        placement.fill(params, self._lib)
        if not self._is_real:
            params.no_alloc = True
            params.load_mode = self._lib.LLAMA_LOAD_MODE_NONE
        self._model = self._lib.llama_model_load_from_file(self._file.encode(), params)
        if not self._model:
            sys.exit("llama.cpp loads no model: " + " ".join(self._lines[-5:]))
        self._load_lines = list(self._lines)

    def _hear(self, level: int, raw: bytes | None, _user: object) -> None:
        if level == _DEBUG:
            return
        line = (raw or b"").decode("utf-8", "replace").strip()
        self._lines.append(line)
        sys.stderr.write(line + "\n")


def read_log(lines: Iterable[str], weights: int) -> Answer:
    """The sizes that llama.cpp's lines tell; of a buffer told twice the last counts for graphs."""
    cells = states = 0.0
    buffers: dict[str, dict[str, float]] = {}
    for line in lines:
        if found := _CELLS.search(line):
            cells += float(found[1])
        elif found := _STATES.search(line):
            states += float(found[1])
        elif found := _BUFFER.search(line):
            row = buffers.setdefault(found[1], {})
            known = 0.0 if found[2] == "compute" else row.get(found[2], 0.0)
            row[found[2]] = known + float(found[3])
    bytes_by = {
        name: {kind: round(mib * _MIB) for kind, mib in row.items()}
        for name, row in buffers.items()
    }
    return Answer(weights, round(cells * _MIB), round(states * _MIB), bytes_by)


if __name__ == "__main__":
    main()
